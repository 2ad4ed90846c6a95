"""What a dual encoder can do on concepts it has not seen, and what its dimensions mean."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_heads import metrics

RANKS = (1, 5, 10)
Map = Callable[[Tensor], Tensor]
SUPPORT = 5  # a dimension is judged by at least so many held-out images that activate it


class Held(NamedTuple):
    """Held-out pairs, one a concept: which they are, rows whose dot product is the similarity, and groups."""

    index: list[int]
    image: Tensor
    text: Tensor
    groups: list[str]


# ---------------------------------------------------------------------------------------------------------- numbers
def recalls(query: Tensor, key: Tensor) -> list[float]:
    """Share of the queries whose own key is among the first 1, 5 and 10; a tie counts against it."""
    similarity = query @ key.T
    ahead = (similarity >= similarity.diagonal()[:, None]).sum(dim=1) - 1
    return [float((ahead < k).double().mean()) for k in RANKS]


def zero_shot(image: Tensor, prompts: Tensor, labels: Tensor) -> float:
    """Accuracy of the nearest prompt, the mean over classes: groups differ in size."""
    right = (image @ prompts.T).argmax(dim=1) == labels
    return float(torch.stack([right[labels == label].double().mean() for label in labels.unique()]).mean())


def agreement(image: Tensor, text: Tensor) -> Tensor:
    """Correlation between a dimension's activations by images and by their captions (d,); NaN where it hardly fires."""
    a, b = image.clamp(min=0).double(), text.clamp(min=0).double()
    fires = (a > 1e-5).sum(dim=0) >= SUPPORT
    a, b = a - a.mean(dim=0), b - b.mean(dim=0)
    correlation = (a * b).sum(dim=0) / (a.norm(dim=0) * b.norm(dim=0)).clamp(min=1e-12)
    return correlation.masked_fill(~fires, float("nan"))


def canonical(image: Tensor, text: Tensor, dim: int = 384, ridge: float = 1.0) -> tuple[Map, Map]:
    """Maps of both sides into the space where the rows correlate most, in closed form: ridge CCA."""
    means = [x.mean(dim=0) for x in (image, text)]
    a, b = (x.double() - mean.double() for x, mean in zip((image, text), means, strict=True))
    root_a, root_b = whitener(a, ridge), whitener(b, ridge)
    u, s, vt = torch.linalg.svd(root_a @ (a.T @ b / len(a)) @ root_b, full_matrices=False)
    weights = [w[:, :dim] * s[:dim].sqrt() for w in (root_a @ u, root_b @ vt.T)]

    def mapping(mean: Tensor, weight: Tensor) -> Map:
        return lambda x: (x - mean) @ weight.to(x.dtype)

    image_map, text_map = map(mapping, means, weights)
    return image_map, text_map


def whitener(x: Tensor, ridge: float) -> Tensor:
    covariance = x.T @ x / len(x)
    covariance += ridge * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=x.dtype, device=x.device)
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors / values.sqrt()) @ vectors.T


COLUMNS = (
    *("text R@1", "text R@5", "text R@10", "image R@1", "image R@5", "image R@10"),
    *("zero-shot", "consistency", "agreement", "sparsity", "alive dims"),
)


def numbers(held: Held, prompts: Tensor, names: Sequence[str]) -> list[float]:
    """The numbers of the table, in the order of COLUMNS; NaN for what the data cannot tell."""
    zero, consistency = float("nan"), float("nan")
    if len(names) > 1:
        known = [i for i, group in enumerate(held.groups) if group]
        labels = torch.tensor([names.index(held.groups[i]) for i in known], device=held.image.device)
        zero = zero_shot(held.image[known], prompts, labels)
        positive = held.image[known].clamp(min=0)
        consistency = metrics.class_consistency(positive, labels, min_support=SUPPORT).chance_corrected
    return [
        *recalls(held.image, held.text),
        *recalls(held.text, held.image),
        *(zero, consistency, float(agreement(held.image, held.text).nanmean())),
        *(metrics.sparsity(held.image), metrics.alive_dimensions(held.image)),
    ]


def markdown(rows: dict[str, list[str]], columns: Sequence[str]) -> str:
    table = [["arm", *columns], *([arm, *cells] for arm, cells in rows.items())]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    table.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(map(str.ljust, cells, widths)) + " |" for cells in table)


# ---------------------------------------------------------------------------------------- what a dimension stands for
def vocabulary(captions: Sequence[str]) -> list[str]:
    """Every word of the captions, once."""
    return sorted({word for caption in captions for word in re.findall(r"[^\W\d_][\w'-]*", caption.lower())})


class Named(NamedTuple):
    """A dimension, the images that activate it most, strongest first, and the words that do."""

    dim: int
    images: list[int]
    words: list[str]
    agreement: float
    fires: int


def name_dimensions(held: Held, words: Tensor, vocabulary: Sequence[str], count: int, shown: int = 6) -> list[Named]:
    """The dimensions on which images and captions agree most, no two of which show mostly the same images.

    Words are chosen by the text tower alone, images by the image tower alone.
    """
    score = agreement(held.image, held.text).nan_to_num(-1.0)
    named: list[Named] = []
    for j in score.argsort(descending=True).tolist():
        activation = held.image[:, j]
        fires = int((activation > 1e-5).sum())
        images = activation.argsort(descending=True)[: min(shown, fires)].tolist()
        if fires < shown or any(len({*images} & {*other.images}) > shown // 2 for other in named):
            continue
        strongest = words[:, j].argsort(descending=True)[:4].tolist()
        named.append(Named(j, images, [vocabulary[i] for i in strongest if words[i, j] > 1e-5], float(score[j]), fires))
        if len(named) == count:
            break
    return named


def draw(panels: dict[str, tuple[list[Named], dict[int, Tensor]]], note: str, path: Path, shown: int = 6) -> None:
    """One row a dimension: the words that name it, then its images (3, h, w), uint8, by their number."""
    from matplotlib import pyplot as plt

    rows = max(1, *(len(named) for named, _ in panels.values()))
    figure = plt.figure(figsize=(7.6 * len(panels), 0.86 * rows + 0.9), layout="constrained")
    parts = figure.subfigures(1, len(panels), squeeze=False)[0]
    for part, (title, (named, images)) in zip(parts, panels.items(), strict=True):
        part.suptitle(title, fontsize=13)
        axes = part.subplots(rows, shown + 1, squeeze=False, width_ratios=[2.8, *[1] * shown])
        for ax in axes.flat:
            ax.axis("off")
        for (label, *pictures), dimension in zip(axes, named, strict=False):
            about = f"dim {dimension.dim}: {dimension.fires} images, agreement {dimension.agreement:.2f}"
            for height, size, colour, text in (
                *(
                    (0.74, 12, "black", ", ".join(dimension.words[:2])),
                    (0.42, 12, "black", ", ".join(dimension.words[2:])),
                ),
                (0.12, 8, "#666666", about),
            ):
                label.text(1, height, text, ha="right", va="center", size=size, color=colour, transform=label.transAxes)
            for ax, i in zip(pictures, dimension.images, strict=False):
                ax.imshow(images[i].permute(1, 2, 0).numpy())
    figure.supxlabel(note, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)
