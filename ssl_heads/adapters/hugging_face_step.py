"""The batches of one step of Trainer's optimiser, which it leaves to `compute_loss_func` to average."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor


class ShareOfStep:
    """The part of one optimiser's step that a batch is; the parts of a step sum to one.

    The state of accelerate says where a step ends, and whether the epoch ends with it: such a step has the batches that
    are left over. Each batch counts alike, with a labels column and without.

    Trainer counts the labels that are not -100, over the batches and ranks of a step, and multiplies the loss by the
    ranks. The count is taken in two cases: where nothing else tells the number of batches, and on many ranks, where an
    option of Trainer decides whether it multiplies. A batch then counts by its rows, and each must have a label.
    """

    def __init__(self, accumulation_steps: int) -> None:
        self.accumulation_steps = accumulation_steps
        self._batches, self._loader = 0, 0  # batches of this step so far, identity of their loader

    def __call__(self, labels: Any, num_items: Tensor | int | None) -> Tensor | float:
        """The share of a batch with these labels."""
        counted = isinstance(labels, Tensor) and num_items is not None
        if counted and (ranks() > 1 or (isinstance(num_items, Tensor) and num_items.numel() > 1)):
            self._of_loader(gradient_state())
            return share_of_labels(labels, num_items)
        if not torch.is_grad_enabled():
            return 1.0
        state = gradient_state()
        if state is None or state.active_dataloader is None:
            return 1 / self.accumulation_steps
        if state.num_steps > 1:
            if self.accumulation_steps > 1:
                raise ValueError(
                    f"accelerate divides by its gradient_accumulation_steps={state.num_steps} itself, and "
                    f"accumulation_steps={self.accumulation_steps} would divide again: leave it out"
                )
            return 1.0
        batches = self._of_loader(state)
        accumulates = batches > 1 or not state.sync_gradients
        if counted and accumulates and (self.accumulation_steps == 1 or length(state.active_dataloader) is None):
            return share_of_labels(labels, num_items)
        expected = self._expected(state)
        if batches > expected or state.sync_gradients != (batches == expected):
            self._batches = 0
            raise ValueError(
                f"accumulation_steps={self.accumulation_steps} was given, and Trainer "
                f"{'makes a step after' if state.sync_gradients else 'accumulates gradients over more than'} {batches} "
                f"batch{'es' if batches > 1 else ''} where {expected} would be a step: pass "
                "HuggingFaceCLIP(..., accumulation_steps=args.gradient_accumulation_steps)"
            )
        return 1 / expected

    def _of_loader(self, state: Any) -> int:
        """The number of this batch in its step."""
        loader = id(getattr(state, "active_dataloader", None))
        count = self._batches + 1 if loader == self._loader else 1
        self._loader = loader
        self._batches = 0 if state is None or state.sync_gradients else count
        return count

    def _expected(self, state: Any) -> int:
        """The batches of this step."""
        if self.accumulation_steps == 1:
            return 1
        batches = length(state.active_dataloader)
        if batches is None:
            raise ValueError(
                "the data set has no length, so the number of batches in its last step cannot be known: give each row "
                "a labels entry, such as its index, and Trainer counts them"
            )
        left_over = batches % self.accumulation_steps
        return left_over if left_over and state.end_of_dataloader else self.accumulation_steps


def share_of_labels(labels: Tensor, num_items: Any) -> Tensor:
    """The labels of a batch among those of its step."""
    if bool((labels == -100).any()):
        raise ValueError(
            "a label is -100, which Trainer does not count, and its count is needed here: on one device pass "
            "HuggingFaceCLIP(..., accumulation_steps=args.gradient_accumulation_steps); on many leave the labels "
            "column out, or put the index of a row there"
        )
    return labels.numel() / torch.as_tensor(num_items, device=labels.device).sum()


def gradient_state() -> Any:
    """The state of accelerate, None if it is not imported."""
    accelerate = sys.modules.get("accelerate.state")
    return None if accelerate is None else accelerate.GradientState()


def length(loader: Any) -> int | None:
    """The batches of a loader, None for a data set without a length."""
    try:
        return len(loader)
    except TypeError:
        return None


def ranks() -> int:
    """The processes that train."""
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if there else 1
