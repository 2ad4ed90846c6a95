"""Known latents: how they and their neighbours are drawn, and what makes observations of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_heads import LpNorm, LpPower, SquaredEuclidean

Draw = Callable[[int], tuple[Tensor, Tensor]]


# ------------------------------------------------------------------------------------------------------ noise
def laplace(shape: tuple[int, int], scale: float) -> Tensor:
    return torch.distributions.Laplace(0.0, scale).sample(shape)


def generalised_normal(shape: tuple[int, int], scale: float, p: float) -> Tensor:
    """Density proportional to ``exp(-|u / scale|^p)``, independent in every dimension."""
    size = torch.distributions.Gamma(1 / p, 1.0).sample(shape).pow(1 / p)
    return scale * size * (torch.randint(0, 2, shape) * 2 - 1)


def norm_noise(shape: tuple[int, int], scale: float, p: float) -> Tensor:
    """Density proportional to ``exp(-|u|_p / scale)``: one radius for all dimensions, so that they depend."""
    direction = generalised_normal(shape, 1.0, p)
    radius = torch.distributions.Gamma(float(shape[1]), 1 / scale).sample((shape[0], 1))
    return radius * direction / torch.linalg.vector_norm(direction, ord=p, dim=1, keepdim=True)


def in_the_box(s: Tensor, noise: Callable[[tuple[int, int]], Tensor]) -> Tensor:
    """Neighbours of s inside [0, 1]^d: what falls outside is drawn again, coordinate by coordinate."""
    shape = (s.shape[0], s.shape[1])
    t = s + noise(shape)
    while (outside := (t < 0) | (t > 1)).any():
        t = torch.where(outside, s + noise(shape), t)
    return t


def two_bumps(n: int, d: int) -> Tensor:
    """Every coordinate an equal mixture of N(1, .35^2) and N(-1, .35^2)."""
    return (torch.randint(0, 2, (n, d)) * 2 - 1) + 0.35 * torch.randn(n, d)


# --------------------------------------------------------------------------------------------------- settings
class Setting(NamedTuple):
    """How pairs of latents are drawn, and which dissimilarity the model assumes."""

    draw: Callable[[int, int], tuple[Tensor, Tensor]]
    dissimilarity: Callable[[], nn.Module]
    says: str


def box(noise: Callable[[tuple[int, int]], Tensor]) -> Callable[[int, int], tuple[Tensor, Tensor]]:
    def draw(n: int, d: int) -> tuple[Tensor, Tensor]:
        s = torch.rand(n, d)
        return s, in_the_box(s, noise)

    return draw


def bumps(noise: Callable[[tuple[int, int]], Tensor]) -> Callable[[int, int], tuple[Tensor, Tensor]]:
    def draw(n: int, d: int) -> tuple[Tensor, Tensor]:
        s = two_bumps(n, d)
        return s, s + noise((n, d))

    return draw


laplace_box = box(lambda shape: laplace(shape, 0.1))
cubic_box = box(lambda shape: generalised_normal(shape, 0.15, 3))
normal_box = box(lambda shape: generalised_normal(shape, 0.15, 2))
laplace_bumps = bumps(lambda shape: laplace(shape, 0.3))
dependent_bumps = bumps(lambda shape: norm_noise(shape, 0.15, 3))

SETTINGS = {
    "box": Setting(laplace_box, lambda: LpPower(1), "uniform in a box, Laplace noise"),
    "cubic": Setting(cubic_box, lambda: LpPower(3), "uniform in a box, noise exp(-|u|^3)"),
    "marginal": Setting(laplace_bumps, lambda: LpPower(1), "two bumps a dimension, Laplace noise"),
    "dependent": Setting(dependent_bumps, lambda: LpNorm(3), "two bumps, noise exp(-|u|_3): factors depend"),
    "normal": Setting(normal_box, SquaredEuclidean, "uniform in a box, normal noise: a rotation is free"),
    "box-as-normal": Setting(laplace_box, SquaredEuclidean, "box, but the model assumes normal noise"),
    "box-as-cubic": Setting(laplace_box, lambda: LpPower(3), "box, but the model assumes exp(-|u|^3)"),
    "normal-as-laplace": Setting(normal_box, lambda: LpPower(1), "normal, but the model assumes Laplace noise"),
}


# ---------------------------------------------------------------------------------------------------- mixing
def mixing(dim: int, layers: int = 3, candidates: int = 2000, quantile: float = 0.02) -> nn.Sequential:
    """A random invertible network: square, well-conditioned layers with leaky ReLUs between them."""
    modules: list[nn.Module] = []
    for layer in range(layers):
        weights = F.normalize(torch.rand(candidates, dim, dim) * 2 - 1, dim=1)
        condition = torch.linalg.cond(weights)
        linear = nn.Linear(dim, dim, bias=False)
        chosen = (condition <= condition.quantile(quantile)).nonzero()[0, 0]
        linear.weight = nn.Parameter(weights[chosen], requires_grad=False)
        modules += [linear] + [nn.LeakyReLU(0.2)] * (layer < layers - 1)
    return nn.Sequential(*modules)


# ---------------------------------------------------------------------------------------------------- scenes
FACTORS = ("x", "y", "hue", "size", "rotation")
PIXELS = 32


def render(latents: Tensor) -> Tensor:
    """Scenes of one flag-shaped object: latents (n, 5) in the unit box to images (n, 3, 32, 32) in [0, 1].

    The object is a bar with a foot on one side, so that no rotation in the range, 150 degrees, looks like another.
    Edges are soft over one pixel: the image is a smooth and injective function of the factors.
    """
    x, y, hue, size, rotation = (rearrange(value, "n -> n 1 1") for value in latents.unbind(dim=1))
    grid = (torch.arange(PIXELS, device=latents.device) + 0.5) / PIXELS * 2 - 1
    u, v = grid[None, None, :] - 0.7 * (x - 0.5), grid[None, :, None] - 0.7 * (y - 0.5)
    angle, scale = (rotation - 0.5) * math.radians(150), 0.3 + 0.3 * size
    u, v = (u * angle.cos() + v * angle.sin()) / scale, (v * angle.cos() - u * angle.sin()) / scale

    def bar(u0: float, v0: float, half_width: float, half_height: float) -> Tensor:
        inside = torch.minimum(half_width - (u - u0).abs(), half_height - (v - v0).abs())
        return torch.sigmoid(inside * scale * PIXELS)

    shape = torch.maximum(bar(0.0, 0.0, 0.22, 1.0), bar(0.45, 0.7, 0.45, 0.25))
    colour = hue_to_rgb(0.75 * hue)
    return 0.1 + 0.9 * rearrange(shape, "n h w -> n 1 h w") * colour


def hue_to_rgb(hue: Tensor) -> Tensor:
    """Hues (n, 1, 1) to full colours (n, 3, 1, 1); less than a full circle, so that it is an interval."""
    offsets = torch.tensor([5.0, 3.0, 1.0], device=hue.device).reshape(1, 3, 1, 1)
    k = (offsets + rearrange(hue, "n 1 1 -> n 1 1 1") * 6) % 6
    return 1 - torch.minimum(torch.minimum(k, 4 - k), torch.ones_like(k)).clamp_min(0)
