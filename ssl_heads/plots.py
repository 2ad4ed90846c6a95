"""Pictures of what a dimension means. They need matplotlib: ``pip install 'ssl-heads[plots]'``."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from ssl_heads.functional.normalize import safe_normalize
from ssl_heads.metrics.activation import expected_activation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FRAME, MARGIN = 0.1, 0.03  # of an image's height
EPS = 1e-5  # a normalised activation above it is active


class ModalClass(NamedTuple):
    """The most frequent class of the images that activate a dimension.

    Attributes:
        label: the class; -1 for a dimension that no image activates.
        share: its share of these images, NaN for none.
        support: the number of these images.
    """

    label: int
    share: float
    support: int


@torch.no_grad()
def modal_class(activation: Tensor, labels: Tensor, *, eps: float = EPS) -> ModalClass:
    r"""Most frequent class among the samples whose activation exceeds ``eps``; negative activations do not count.

    Args:
        activation: ``(n,)``, one dimension of normalised embeddings.
        labels: ``(n,)``, classes 0, 1, ...
        eps: activation above which a sample is active.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> modal_class(torch.tensor([0.5, 0.2, 0.1, -0.9]), torch.tensor([7, 7, 1, 1]))
        ModalClass(label=7, share=0.6666666666666666, support=3)
    """
    if activation.shape != labels.shape or labels.dim() != 1:
        shapes = f"{tuple(activation.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"expected activation (n,) and labels (n,); got {shapes}")
    active = labels[activation > eps]
    if len(active) == 0:
        return ModalClass(-1, float("nan"), 0)
    counts = active.bincount()
    label = int(counts.argmax())
    return ModalClass(label, int(counts[label]) / len(active), len(active))


def top_activating(
    images: Tensor,
    embeddings: Tensor,
    labels: Tensor | None = None,
    *,
    dims: Sequence[int] | Tensor | None = None,
    num_images: int = 8,
    num_spread: int = 0,
    class_names: Sequence[str] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> tuple[Figure, Axes]:
    r"""Show the images that activate each dimension most, one row a dimension, the strongest on the left.

    .. math:: \text{row } j:\ \operatorname{argsort}_i(-q_{ij}),\qquad q_i = z_i / \lVert z_i \rVert_2

    The strongest images alone flatter a dimension: many look like one class at their extreme and fire for all of them.
    ``num_spread`` more images, right of a gap, are taken at even distances from the other images that activate the
    dimension, down to the weakest. Only positive activations count, so that signed embeddings are judged by the same
    rule as non-negative ones; a place stays empty where too few images activate the dimension.

    With labels, the colour of an image's frame is its class, and a row's name tells the modal class of *all* images
    that activate the dimension, its share of them, and their number.

    Args:
        images: ``(n, c, h, w)``, one or three channels, uint8 or floats in [0, 1].
        embeddings: ``(n, d)``, signed or not; rows are normalised here.
        labels: ``(n,)``, classes 0, 1, ...
        dims: the dimensions to show, in this order; ``None`` takes the eight of largest
            :func:`ssl_heads.metrics.expected_activation`.
        num_images: the strongest images of a row.
        num_spread: images of a row from the rest of those that activate it.
        class_names: what to call the classes; ``None`` takes their numbers.
        title: over the picture.
        ax: axes to draw on; ``None`` makes a figure.

    Returns:
        The figure and its axes.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: if the shapes do not fit, a dimension does not exist, or a number of images is out of range.

    Example:
        >>> fig, ax = top_activating(torch.rand(100, 1, 28, 28), torch.rand(100, 64), torch.arange(100) % 10)
        >>> fig.savefig("dimensions.png")  # doctest: +SKIP
    """
    plt = _pyplot()
    _check_shapes(images, embeddings, labels, num_images, num_spread)
    rows = expected_activation(embeddings).order[:8].tolist() if dims is None else torch.as_tensor(dims).tolist()
    if not rows or not all(0 <= j < embeddings.shape[1] for j in rows):
        raise ValueError(f"dims must lie in 0..{embeddings.shape[1] - 1} and name at least one dimension; got {rows}")

    activation = safe_normalize(embeddings.detach().float())[:, rows].cpu()
    index = torch.stack([_strongest_and_spread(a, num_images, num_spread) for a in activation.unbind(dim=1)])
    empty = index < 0
    thumbnails = _thumbnails(images.cpu()[index.clamp(min=0)])
    modal = None
    if labels is not None:
        labels = labels.cpu()
        modal = [modal_class(a, labels) for a in activation.unbind(dim=1)]
        thumbnails = _framed(thumbnails, class_colours(int(labels.max()) + 1)[labels[index.clamp(min=0)]])
    thumbnails[empty] = 1.0

    if ax is None:
        columns = num_images + num_spread
        _, ax = plt.subplots(figsize=(0.55 * columns + 1.6, 0.55 * len(rows) + 0.5), layout="constrained")
    picture = _montage(thumbnails, num_images)
    ax.imshow(picture.numpy(), interpolation="nearest")
    height = picture.shape[0] / len(rows)
    ax.set_yticks([(r + 0.5) * height for r in range(len(rows))], _names(rows, modal, class_names))
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    if title is not None:
        ax.set_title(title)
    figure: Figure = ax.get_figure(root=True)  # type: ignore[assignment]
    return figure, ax


def class_colours(num_classes: int) -> Tensor:
    """Colours that tell classes apart, RGB in [0, 1], shape ``(num_classes, 3)``; with many classes they come close.

    Example:
        >>> class_colours(10).shape
        torch.Size([10, 3])
    """
    colours = import_module("matplotlib").colormaps
    if num_classes <= 10:
        return torch.tensor(colours["tab10"].colors)[:num_classes]
    return torch.from_numpy(colours["gist_rainbow"].resampled(num_classes)(range(num_classes))[:, :3]).float()


def _strongest_and_spread(activation: Tensor, num_images: int, num_spread: int) -> Tensor:
    """Indices of the strongest samples, then of samples at even ranks among the other active ones; -1 for none left."""
    order = activation.argsort(descending=True, stable=True)[: int((activation > EPS).sum())]
    rest = order[num_images:]
    ranks = torch.linspace(0, len(rest) - 1, num_spread).round().long() if len(rest) > num_spread else slice(None)
    index = torch.full((num_images + num_spread,), -1)
    index[: len(order[:num_images])] = order[:num_images]
    index[num_images : num_images + len(rest[ranks])] = rest[ranks]
    return index


def _pyplot() -> ModuleType:
    try:
        return import_module("matplotlib.pyplot")
    except ImportError as error:
        raise ImportError("ssl_heads.plots needs matplotlib: pip install 'ssl-heads[plots]'") from error


def _check_shapes(images: Tensor, embeddings: Tensor, labels: Tensor | None, num_images: int, num_spread: int) -> None:
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"expected images (n, 1 or 3, h, w); got shape {tuple(images.shape)}")
    if embeddings.dim() != 2 or len(embeddings) != len(images) or len(images) == 0:
        raise ValueError(
            f"expected embeddings (n, d), a row an image, and n > 0; got embeddings {tuple(embeddings.shape)} and "
            f"images {tuple(images.shape)}"
        )
    if labels is not None and labels.shape != embeddings.shape[:1]:
        raise ValueError(f"expected labels ({len(embeddings)},), one an image; got shape {tuple(labels.shape)}")
    if num_images < 1:
        raise ValueError(f"num_images must be at least 1, got {num_images}")
    if num_spread < 0:
        raise ValueError(f"num_spread must not be negative, got {num_spread}")


def _thumbnails(images: Tensor) -> Tensor:
    """Images of any kind (row, column, c, h, w) as RGB (row, column, h, w, 3) in [0, 1] on the CPU."""
    values = images.cpu().float() / 255 if images.dtype == torch.uint8 else images.detach().cpu().float().clamp(0, 1)
    values = rearrange(values, "row column c h w -> row column h w c")
    return values.expand(*values.shape[:-1], 3).contiguous()


def _framed(thumbnails: Tensor, colours: Tensor) -> Tensor:
    """Put a frame of the given colour (row, column, 3), and white around it, about every thumbnail."""
    height, width = thumbnails.shape[2:4]
    margin, frame = max(1, round(MARGIN * height)), max(1, round(FRAME * height))
    edge = margin + frame
    framed = thumbnails.new_ones(*thumbnails.shape[:2], height + 2 * edge, width + 2 * edge, 3)
    framed[:, :, margin:-margin, margin:-margin] = colours[:, :, None, None]
    framed[:, :, edge:-edge, edge:-edge] = thumbnails
    return framed


def _montage(thumbnails: Tensor, num_images: int) -> Tensor:
    """One picture of all rows, with a gap after the first ``num_images`` columns if more follow."""
    strongest, spread = (
        rearrange(part, "row column h w c -> (row h) (column w) c")
        for part in (thumbnails[:, :num_images], thumbnails[:, num_images:])
    )
    if spread.shape[1] == 0:
        return strongest
    gap = strongest.new_ones(len(strongest), thumbnails.shape[3] // 2, 3)
    return torch.cat([strongest, gap, spread], dim=1)


def _names(rows: list[int], modal: list[ModalClass] | None, class_names: Sequence[str] | None) -> list[str]:
    if modal is None:
        return [f"dim {j}" for j in rows]
    return [f"dim {j}\n{_describe(m, class_names)}" for j, m in zip(rows, modal, strict=True)]


def _describe(modal: ModalClass, class_names: Sequence[str] | None) -> str:
    if modal.support == 0:
        return "never active"
    name = str(modal.label) if class_names is None else class_names[modal.label]
    return f"{name}: {modal.share:.0%} of {modal.support}"
