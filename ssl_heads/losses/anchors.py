"""Regression to fixed class anchors: a few labels keep an embedding from collapsing."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed

from ssl_heads import _check, functional
from ssl_heads._start import copy_start
from ssl_heads.distributed import Gather
from ssl_heads.functional.anchors import DISTANCES, Basis, Distance, class_anchors
from ssl_heads.functional.groups import NONE
from ssl_heads.losses._base import GatheringLoss
from ssl_heads.recomputing import recomputing

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

BATCHES_BEFORE_WARNING = 100


class OrthonormalAnchorRegression(GatheringLoss):
    r"""Pull every labelled embedding to the fixed direction of its class; add it to any self-supervised loss.

    .. math:: L = L_\text{base} + \frac{\lambda}{|S|}\sum_{i \in S} 1 - \cos(z_i, c_{y_i})

    One direction for all embeddings is a stationary point of contrastive losses, and with two labelled classes none of
    this loss: anchors make dimensional collapse rarer. They do not exclude it, since a network whose units have all
    died has no gradient left.

    The anchors are a buffer: saved with the model, never trained, the same for a seed on every rank. Labels of one
    class alone leave collapse stationary, so training on a single class warns once (labels on a GPU are not read).

    Args:
        num_classes: K, the number of anchors.
        dim: Width of the embeddings.
        basis: ``"qr"`` (random orthonormal directions), ``"identity"`` (for non-negative embeddings), ``"etf"``
            (regular simplex), ``"grassmannian"`` (more classes than dimensions), or a tensor of shape (K, d) whose rows
            are then normalised: see `ssl_heads.functional.class_anchors`.
        distance: ``"cosine"``, ``"euclidean"`` or ``"manhattan"``.
        ignore_index: What stands for no label beside -1.
        seed: Of the random directions.
        gather, group: Over whose labelled rows the mean is taken, see `ssl_heads.distributed`.

    Raises:
        ValueError: If the classes do not fit into the dimensions, a tensor has the wrong shape or a zero row, or a
            choice is unknown.

    Reference:
        Orthonormal anchors (arXiv 2403.18699) and their successor CLOP (arXiv 2512.07880), which takes the mean.

    Example:
        >>> import torch
        >>> from ssl_heads import OrthonormalAnchorRegression
        >>> anchors = OrthonormalAnchorRegression(10, 128)
        >>> z, labels = torch.randn(256, 128), torch.full((256,), -1)
        >>> labels[:25] = torch.arange(25) % 10  # one row in ten has a label
        >>> anchors(z, labels).shape
        torch.Size([])
    """

    takes = "labels"
    configuration = ("num_classes", "dim", "basis", "distance", "ignore_index", "gather")
    anchors: Tensor

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        basis: Basis | Tensor = "qr",
        distance: Distance = "cosine",
        ignore_index: int = -1,
        seed: int = 0,
        gather: Gather = "none",
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(gather, group)
        _check.choice("distance", distance, DISTANCES)
        self.num_classes = num_classes = _check.at_least_one("num_classes", num_classes)
        self.dim = dim = _check.at_least_one("dim", dim)
        if 0 <= _check.integer("ignore_index", ignore_index) < num_classes:
            raise ValueError(f"ignore_index must not be a class, 0..{num_classes - 1}, got {ignore_index}")
        self.basis = "tensor" if isinstance(basis, Tensor) else basis
        self.seed = _check.integer("seed", seed)
        self.distance, self.ignore_index = distance, ignore_index
        self._given = _unit_anchors(basis, num_classes, dim) if isinstance(basis, Tensor) else None
        device = None if self._given is None else self._given.device
        self.register_buffer("anchors", torch.empty(num_classes, dim, device=device))
        self.reset_parameters()
        self._seen: set[int] = set()
        self._labelled_batches = 0
        if num_classes == 1:
            _warn_of_one_class()

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Embeddings of shape (n, d) and labels of shape (n,), -1 for none, of both views together, to a scalar."""
        loss = functional.anchor_regression(
            embeddings,
            labels,
            self.anchors,
            distance=self.distance,
            ignore_index=self.ignore_index,
            gather=self.gather,
            group=self.group,
        )
        if self.training and not torch.compiler.is_compiling() and not recomputing() and labels.device.type == "cpu":
            self._warn_if_one_class(labels)
        return loss

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the anchors to those of the seed, or of the tensor that the constructor was given."""
        if self._given is None:
            generator = torch.Generator("cpu").manual_seed(self.seed)
            with torch.device("cpu"):
                self.anchors.copy_(class_anchors(self.num_classes, self.dim, self.basis, generator))  # type: ignore[arg-type]
        else:
            copy_start(self.anchors, self._given, "a tensor basis")

    def broadcast(self) -> None:
        """Take the anchors of the group's first rank: for a tensor basis that every rank drew on its own."""
        source = 0 if self.group is None else distributed.get_global_rank(self.group, 0)
        distributed.broadcast(self.anchors, source, self.group)

    def _warn_if_one_class(self, labels: Tensor) -> None:
        """Warn if many labelled batches held one class only; in few batches that is chance."""
        if self._labelled_batches > BATCHES_BEFORE_WARNING or len(self._seen) > 1 or len(self.anchors) == 1:
            return
        found = set(labels.tolist()) - {NONE, self.ignore_index}
        self._seen |= found
        self._labelled_batches += bool(found)
        if self._labelled_batches > BATCHES_BEFORE_WARNING and len(self._seen) == 1:
            _warn_of_one_class(f": only {self._seen.pop()} in {BATCHES_BEFORE_WARNING} batches with labels")


def _unit_anchors(basis: Tensor, num_classes: int, dim: int) -> Tensor:
    if basis.shape != (num_classes, dim) or not basis.is_floating_point():
        raise ValueError(
            f"a tensor basis holds one direction a class: expected a floating-point tensor of shape "
            f"({num_classes}, {dim}), got {basis.dtype} of shape {tuple(basis.shape)}"
        )
    anchors = functional.safe_normalize(basis.detach().double()).float()
    if not anchors.is_meta and not bool(anchors.isfinite().all() & anchors.any(dim=1).all()):
        raise ValueError("a tensor basis must be finite, and no row of it may be zero: a class needs a direction")
    return anchors


def _warn_of_one_class(where: str = "") -> None:
    warnings.warn(
        f"anchors prevent collapse only if two classes are labelled, and one is{where}: label a second class, or leave "
        "the anchors out",
        stacklevel=4,
    )
