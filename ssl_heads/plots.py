"""Pictures of what a dimension means. They need matplotlib: `pip install 'ssl-heads[plots]'`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from ssl_heads._check import positive
from ssl_heads._images import as_images
from ssl_heads.metrics._inputs import (
    ArrayLike,
    as_classes,
    as_integers,
    as_labels,
    as_matrix,
    as_tensor,
    finite,
    refuse_rows_that_are_not_finite,
    whole,
)
from ssl_heads.metrics._rows import EPS, unit_rows
from ssl_heads.metrics.activation import expected_activation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FRAME, MARGIN = 0.1, 0.03  # of an image's height


class ModalClass(NamedTuple):
    """The most frequent class of the images that activate a dimension.

    Attributes:
        label: The class; -1 for a dimension that no image with a class activates.
        share: Its share of these images, NaN for none.
        support: The number of these images; -1 if the activation holds NaN or infinity.
    """

    label: int
    share: float
    support: int


@torch.no_grad()
def modal_class(activation: ArrayLike, labels: ArrayLike, *, eps: float = EPS) -> ModalClass:
    r"""Most frequent class among the samples whose activation exceeds `eps`; negative activations do not count.

    Args:
        activation: Shape (n,), one dimension of normalised embeddings.
        labels: Shape (n,), classes 0, 1, ...; samples with -1 have no class and are left out.
        eps: Activation above which a sample is active.

    Raises:
        ValueError: If the shapes differ, or labels are not integers.

    Example:
        >>> modal_class(torch.tensor([0.5, 0.2, 0.1, -0.9]), torch.tensor([7, 7, 1, 1]))
        ModalClass(label=7, share=0.6666666666666666, support=3)
    """
    positive("eps", eps)
    strength, classes = as_tensor("activation", activation).cpu(), as_classes("labels", labels).cpu()
    if strength.shape != classes.shape:
        shapes = f"{tuple(strength.shape)} and {tuple(classes.shape)}"
        raise ValueError(f"expected activation (n,) and labels (n,), got {shapes}")
    if not finite(strength):
        return ModalClass(-1, math.nan, -1)
    found, counts = torch.unique(classes[(strength > eps) & (classes >= 0)], return_counts=True)
    if len(found) == 0:
        return ModalClass(-1, math.nan, 0)
    most, support = counts.argmax(), int(counts.sum())
    return ModalClass(int(found[most]), int(counts[most]) / support, support)


def top_activating(
    images: ArrayLike,
    embeddings: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    dims: ArrayLike | None = None,
    num_images: int = 8,
    num_spread: int = 0,
    class_names: Sequence[str] | Mapping[int, str] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    eps: float = EPS,
) -> tuple[Figure, Axes]:
    r"""Show the images that activate each dimension most, one row a dimension, the strongest on the left.

    .. math:: \text{row } j:\ \operatorname{argsort}_i(-q_{ij}),\qquad q_i = z_i / \lVert z_i \rVert_2

    The strongest images alone flatter a dimension: many look like one class at their extreme and fire for all of them.
    `num_spread` more images, right of a gap, are taken at even distances from the other images that activate the
    dimension, down to the weakest. Only positive activations count, so that signed embeddings are judged by the same
    rule as non-negative ones; a place stays empty where too few images activate the dimension. The row of a dimension
    that none activates says whether it is negative on some images or silent on all.

    With labels, the colour of an image's frame is its class, and a row's name tells the modal class of *all* images
    that activate the dimension, its share of them, and their number. Images of label -1 have no class, and no frame.

    Args:
        images: Shape (n, c, h, w) or (n, h, w, c) with one or three channels, or (n, h, w); values in [0, 1] or
            [0, 255]. Or a list of Pillow's images, of one size.
        embeddings: Shape (n, d), signed or not; rows are normalised here.
        labels: Shape (n,), classes 0, 1, ..., or -1 for none.
        dims: The dimensions to show, in this order; None takes the eight of largest
            `ssl_heads.metrics.expected_activation`.
        num_images: The strongest images of a row.
        num_spread: Images of a row from the rest of those that activate it.
        class_names: Names of the classes, one for each that occurs; None takes their numbers.
        title: Title of the picture.
        ax: Axes to draw on; None makes a figure.
        eps: A normalised entry above it is an activation.

    Returns:
        The figure and its axes.

    Raises:
        ImportError: If matplotlib is missing.
        ValueError: If the shapes do not fit, a row of the embeddings holds NaN or infinity, images are in no range that
            is known, a dimension does not exist, a class has no name, or a number of images is out of range.

    Example:
        >>> fig, ax = top_activating(torch.rand(100, 1, 28, 28), torch.rand(100, 64), torch.arange(100) % 10)
        >>> fig.savefig("dimensions.png")  # doctest: +SKIP
    """
    plt = _pyplot()
    num_images, num_spread = whole("num_images", num_images, least=1), whole("num_spread", num_spread, least=0)
    positive("eps", eps)
    pixels, white = as_images(images)
    z = as_matrix("embeddings", embeddings)
    if len(z) != len(pixels):
        shapes = f"embeddings {tuple(z.shape)} and images {tuple(pixels.shape)}"
        raise ValueError(f"expected embeddings (n, d), a row an image, got {shapes}")
    refuse_rows_that_are_not_finite("embeddings", z)
    classes = None if labels is None else as_labels("labels", labels, "embeddings", z).cpu()
    _check_names(class_names, classes)
    rows = expected_activation(z).order[:8].tolist() if dims is None else as_integers("dims", dims).flatten().tolist()
    if not rows or not all(0 <= j < z.shape[1] for j in rows):
        raise ValueError(f"dims must lie in 0..{z.shape[1] - 1} and name at least one dimension, got {rows}")

    activation = unit_rows(z)[:, rows].cpu()
    index = torch.stack([_strongest_and_spread(a, num_images, num_spread, eps) for a in activation.unbind(dim=1)])
    empty = index < 0
    thumbnails = _thumbnails(pixels[index.clamp(min=0).to(pixels.device)], white)
    if classes is not None:
        white_frame = torch.ones(1, 3, device="cpu")  # label -1 takes the last colour
        colours = torch.cat([class_colours(int(classes.max()) + 1), white_frame])
        thumbnails = _framed(thumbnails, colours[classes[index.clamp(min=0)]])
    thumbnails[empty] = 1.0
    names = [_name(j, a, classes, class_names, eps) for j, a in zip(rows, activation.unbind(dim=1), strict=True)]

    if ax is None:
        columns = num_images + num_spread
        _, ax = plt.subplots(figsize=(0.55 * columns + 1.6, 0.55 * len(rows) + 0.5), layout="constrained")
    picture = _montage(thumbnails, num_images)
    ax.imshow(picture.numpy(), interpolation="nearest")
    height = picture.shape[0] / len(rows)
    ax.set_yticks([(r + 0.5) * height for r in range(len(rows))], names)
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    if title is not None:
        ax.set_title(title)
    return ax.figure.figure, ax  # the figure itself, also where the axes lie in a subfigure


def class_colours(num_classes: int) -> Tensor:
    """Colours that tell classes apart, RGB in [0, 1], shape (num_classes, 3); with many classes they come close.

    Example:
        >>> class_colours(10).shape
        torch.Size([10, 3])
    """
    colours = import_module("matplotlib").colormaps
    if num_classes <= 10:
        return torch.tensor(colours["tab10"].colors, device="cpu")[:num_classes]
    return torch.from_numpy(colours["gist_rainbow"].resampled(num_classes)(range(num_classes))[:, :3]).float()


def _strongest_and_spread(activation: Tensor, num_images: int, num_spread: int, eps: float) -> Tensor:
    """Indices of the strongest samples, then of samples at even ranks among the other active ones; -1 for none left."""
    order = activation.argsort(descending=True, stable=True)[: int((activation > eps).sum())]
    rest = order[num_images:]
    if len(rest) > num_spread:
        rest = rest[torch.linspace(0, len(rest) - 1, num_spread, device="cpu").round().long()]
    index = torch.full((num_images + num_spread,), -1, device="cpu")
    index[: len(order[:num_images])] = order[:num_images]
    index[num_images : num_images + len(rest)] = rest
    return index


def _pyplot() -> ModuleType:
    try:
        return import_module("matplotlib.pyplot")
    except ImportError as error:
        raise ImportError("ssl_heads.plots needs matplotlib: pip install 'ssl-heads[plots]'") from error


def _check_names(class_names: Sequence[str] | Mapping[int, str] | None, classes: Tensor | None) -> None:
    """Each class that occurs has a name."""
    if class_names is None:
        return
    if classes is None:
        raise ValueError(f"class_names are of the classes in labels, and there are no labels, got {class_names!r}")
    if not hasattr(class_names, "__getitem__"):
        raise ValueError(f"class_names must be a list or a dict, from class to name, got {type(class_names).__name__}")
    known = class_names.keys() if isinstance(class_names, Mapping) else range(len(class_names))
    nameless = [c for c in torch.unique(classes).tolist() if c >= 0 and c not in known]
    if nameless:
        raise ValueError(f"class_names has no name for class {nameless[0]}: it names {len(known)}, got {class_names!r}")


def _thumbnails(images: Tensor, white: float) -> Tensor:
    """Images (row, column, c, h, w) as RGB (row, column, h, w, 3) in [0, 1] on the CPU."""
    values = rearrange((images.cpu().float() / white).clamp(0, 1), "row column c h w -> row column h w c")
    return values.expand(*values.shape[:-1], 3).contiguous()


def _framed(thumbnails: Tensor, colours: Tensor) -> Tensor:
    """Every thumbnail in a frame of its colour (row, column, 3), with a white margin around it."""
    height, width = thumbnails.shape[2:4]
    margin, frame = max(1, round(MARGIN * height)), max(1, round(FRAME * height))
    edge = margin + frame
    framed = thumbnails.new_ones(*thumbnails.shape[:2], height + 2 * edge, width + 2 * edge, 3)
    framed[:, :, margin:-margin, margin:-margin] = colours[:, :, None, None]
    framed[:, :, edge:-edge, edge:-edge] = thumbnails
    return framed


def _montage(thumbnails: Tensor, num_images: int) -> Tensor:
    """One picture of all rows, with a gap after the first `num_images` columns if more follow."""
    strongest, spread = (
        rearrange(part, "row column h w c -> (row h) (column w) c")
        for part in (thumbnails[:, :num_images], thumbnails[:, num_images:])
    )
    if spread.shape[1] == 0:
        return strongest
    gap = strongest.new_ones(len(strongest), thumbnails.shape[3] // 2, 3)
    return torch.cat([strongest, gap, spread], dim=1)


def _name(
    dim: int,
    activation: Tensor,
    classes: Tensor | None,
    class_names: Sequence[str] | Mapping[int, str] | None,
    eps: float,
) -> str:
    """The name of a row: its dimension, and the modal class or the reason why it is empty."""
    support = int((activation > eps).sum())
    if support == 0:
        return f"dim {dim}\n{'only negative' if bool((activation < -eps).any()) else 'never active'}"
    if classes is None:
        return f"dim {dim}"
    modal = modal_class(activation, classes, eps=eps)
    if modal.support == 0:
        return f"dim {dim}\nno label on {support}"
    name = str(modal.label) if class_names is None else class_names[modal.label]
    return f"dim {dim}\n{name}: {modal.share:.0%} of {modal.support}"
