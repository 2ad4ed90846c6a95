"""The queue of MoCo: the keys of past batches, as negatives for this one."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ssl_heads import _check
from ssl_heads.functional.normalize import safe_normalize


class MemoryQueue(nn.Module):
    r"""The last K keys: a buffer of shape (K, d) in the `state_dict`, in which new rows take the place of the oldest.

    .. math:: Q_{(c + i) \bmod K} \leftarrow k_i, \qquad c \leftarrow c + n

    Keys come in batches of any size, also larger than K, and none is dropped at the wrap. Nothing is enqueued unless
    you say so, so that a symmetric loss does not do it twice. `enqueue` writes into the buffers, so that a cached
    `state_dict`, a replica and an average see it. `InfoNCELoss` keeps rows of its own for its backward pass; an
    equation of your own takes `queue.rows.clone()` if the keys are enqueued before its backward pass, else autograd
    refuses. On many processes enqueue the keys of all: `queue.enqueue(all_gather_rows(key))`. The start is drawn from
    a generator of its own, the same on every rank.

    The start matters. Beside non-negative embeddings, random rows of both signs are no negatives at all: their cosines
    are near zero where those of real keys are about 0.4 (ReLU) to 0.9 (softplus), so that the first K / n steps are
    trivial. `start="nonneg"` draws magnitudes of Gaussians (0.45 and 0.77). Better still are real keys, from an
    encoder that is not trained yet: `while queue.filled < size: queue.enqueue(key_encoder(next_batch))`.

    Args:
        size: Rows K.
        dim: Width d of the embeddings.
        start: The rows before any key: ``"nonneg"`` for non-negative heads, ``"signed"`` for others; of length one.
        dtype: Dtype of the rows; bfloat16 halves the memory.

    Attributes:
        rows: Shape (K, d), the queue for `InfoNCELoss`. No gradient reaches it.
        ids: Shape (K,), what `enqueue` was given beside each row, -1 (none, to a loss too) where nothing was.

    Raises:
        ValueError: If size or dim is below 1 or the start is unknown; in `enqueue` if keys have another width.

    Reference:
        Momentum Contrast for Unsupervised Visual Representation Learning (CVPR 2020), section 3.2.

    Example:
        >>> from ssl_heads import InfoNCELoss, MemoryQueue
        >>> queue, loss = MemoryQueue(4096, 128), InfoNCELoss(temperature=0.3)
        >>> query, key = torch.rand(32, 128, requires_grad=True), torch.rand(32, 128)
        >>> value = loss(query, key, queue.rows)
        >>> queue.enqueue(key)
        >>> value.backward()
        >>> queue.filled
        32
    """

    rows: Tensor
    ids: Tensor
    count: Tensor

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        start: Literal["nonneg", "signed"] = "nonneg",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        _check.at_least_one("size", size)
        _check.at_least_one("dim", dim)
        _check.choice("start", start, ("nonneg", "signed"))
        self.start = start
        self.register_buffer("rows", torch.empty(size, dim, dtype=dtype))
        self.register_buffer("ids", torch.empty(size, dtype=torch.long))
        # one counter gives the place of the next row and the filled rows; on the device, enqueue waits for nothing
        self.register_buffer("count", torch.empty(1, dtype=torch.long))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Empty the queue: the start in all rows, and no ids."""
        generator = torch.Generator("cpu").manual_seed(0)
        rows = torch.randn(self.rows.shape, generator=generator, dtype=torch.float32, device="cpu")
        self.rows.copy_(safe_normalize(rows.abs() if self.start == "nonneg" else rows))
        self.ids.fill_(-1)
        self.count.zero_()

    @property
    def filled(self) -> int:
        """How many rows hold keys and not the start; on a GPU this waits for it."""
        return min(int(self.count), len(self.rows))

    # autograd refuses tensors that inference mode has made, so the queue is written outside of it
    @torch.inference_mode(False)
    @torch.no_grad()
    def enqueue(self, keys: Tensor, ids: Tensor | None = None) -> None:
        """Put keys of shape (n, d), and optional ids of shape (n,), in the place of the oldest rows."""
        size, dim = self.rows.shape
        _check.tensor("keys", keys)
        if keys.ndim != 2 or keys.shape[1] != dim or not keys.is_floating_point():
            raise ValueError(
                f"keys must be floating-point and have the width of the queue, shape (n, {dim}), got "
                f"{tuple(keys.shape)} of {keys.dtype} beside a queue of shape {(size, dim)}"
            )
        _check.same_device("keys", keys, "the queue", self.rows)
        if ids is None:
            ids = self.ids.new_full((len(keys),), -1)
        _check.integers("ids", ids, len(keys), "keys", keys)
        at = (self.count + torch.arange(len(keys), device=keys.device))[-size:] % size
        self.rows.index_copy_(0, at, keys[-size:].to(self.rows.dtype))
        self.ids.index_copy_(0, at, ids[-size:].to(self.ids.dtype))
        self.count.add_(len(keys))

    def extra_repr(self) -> str:
        """The shape."""
        size, dim = self.rows.shape
        return f"size={size}, dim={dim}, dtype={self.rows.dtype}"
