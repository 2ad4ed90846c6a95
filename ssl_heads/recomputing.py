"""Activation checkpointing: a forward pass that runs again inside the backward pass."""

from __future__ import annotations

import torch


def recomputing() -> bool:
    """Whether autograd runs a backward pass now, so that a forward pass is a second one of the same step.

    A module that notes something in forward notes it in the first only. Compiled graphs recompute without Python.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
