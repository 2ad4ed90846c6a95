"""What a dual encoder can do on concepts it has not seen, and what its dimensions mean."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ssl_heads import metrics

RANKS = (1, 5, 10)
Map = Callable[[Tensor], Tensor]
OVERLAP = 0.35  # of two named dimensions: the cosine of their activations over the images
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
    white_a, white_b = whitening(a, ridge), whitening(b, ridge)
    u, s, vt = torch.linalg.svd((a @ white_a).T @ (b @ white_b) / len(a), full_matrices=False)
    weights = [w[:, :dim] * s[:dim].sqrt() for w in (white_a @ u, white_b @ vt.T)]

    def mapping(mean: Tensor, weight: Tensor) -> Map:
        return lambda x: (x - mean) @ weight.to(x.dtype)

    image_map, text_map = map(mapping, means, weights)
    return image_map, text_map


def whitening(x: Tensor, ridge: float) -> Tensor:
    """Directions of the rows' space (width, rank), each over its deviation; the ridge is of the mean variance."""
    _, s, vt = torch.linalg.svd(x / len(x) ** 0.5, full_matrices=False)
    return vt.T / (s.square() + ridge * s.square().sum() / x.shape[1]).sqrt()


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
    """The dimensions on which images and captions agree most, no two of which are active on much the same images.

    Words are chosen by the text tower alone, images by the image tower alone.
    """
    score = agreement(held.image, held.text).nan_to_num(-1.0)
    columns = nn.functional.normalize(held.image.clamp(min=0), dim=0)
    named: list[Named] = []
    for j in score.argsort(descending=True).tolist():
        fires = int((columns[:, j] > 1e-5).sum())
        if fires < shown or any(float(columns[:, j] @ columns[:, other.dim]) > OVERLAP for other in named):
            continue
        images = columns[:, j].argsort(descending=True)[:shown].tolist()
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
        axes = part.subplots(rows, 2, squeeze=False, width_ratios=[2.6, shown])
        for ax in axes.flat:
            ax.axis("off")
        for (label, strip), dimension in zip(axes, named, strict=False):
            words = dimension.words
            about = f"dim {dimension.dim}: {dimension.fires} images, agreement {dimension.agreement:.2f}"
            for height, text in ((0.76, ", ".join(words[:2])), (0.44, ", ".join(words[2:]))):
                label.text(1, height, text, ha="right", va="center", size=12, transform=label.transAxes)
            label.text(1, 0.12, about, ha="right", va="center", size=8, color="#666666", transform=label.transAxes)
            row = torch.cat([nn.functional.pad(images[i], (4, 4), value=255) for i in dimension.images], dim=2)
            strip.imshow(row.permute(1, 2, 0).numpy())
    figure.supxlabel(note, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)
