"""The four arms of the CLIP example: a head on each tower, and the loss that compares them."""

from __future__ import annotations

import argparse
import copy
import math
from typing import Any

import torch
from clip_towers import Towers
from torch import Tensor, nn

from ssl_heads import BayesianGate, CLIPLoss, FeatureImportance, NonNegProjection, SigLIPLoss, TriFactorContrast
from ssl_heads.functional import safe_normalize
from ssl_heads.optim import param_groups

TEMPERATURES = (0.01, 1.0)  # the range of a learned temperature, CLIP's: the logits' scale is its inverse


# ------------------------------------------------------------------------------------------------------------- heads
class Head(nn.Module):
    """Features of one tower to embeddings, and a penalty, zero here."""

    def __init__(self, width: int, args: argparse.Namespace) -> None:
        super().__init__()
        self.input = nn.Sequential(nn.BatchNorm1d(width, affine=False), nn.Dropout(args.dropout))
        self.project: nn.Module = nn.Sequential(
            nn.Linear(width, args.hidden), nn.BatchNorm1d(args.hidden), nn.ReLU(), nn.Linear(args.hidden, args.dim)
        )

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor | float]:
        return self.project(self.input(features)), 0.0


class NonNegHead(Head):
    """Embeddings that cannot be negative."""

    def __init__(self, width: int, args: argparse.Namespace) -> None:
        super().__init__(width, args)
        self.project = NonNegProjection(width, args.hidden, args.dim)


class GatedHead(NonNegHead):
    """A gate decides, input by input, which dimensions are in use; the penalty pulls it to a sparse prior."""

    def __init__(self, width: int, args: argparse.Namespace) -> None:
        super().__init__(width, args)
        self.gate = BayesianGate(width, args.dim, hidden_features=args.hidden, prior=args.prior)
        self.kl_weight = args.kl_weight

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor | float]:
        x = self.input(features)
        gated = self.gate(x, self.project(x))
        return gated.embeddings, self.kl_weight * gated.kl


# ---------------------------------------------------------------------------------------------------- the four arms
class Signed(nn.Module):
    """Two towers, a head on each, cosines with a learned scale: CLIP."""

    head: type[Head] = Head
    start = ("clip", 0.07)  # loss and temperature unless told, chosen on validation concepts (docs/clip.md)

    def __init__(self, towers: Towers, args: argparse.Namespace) -> None:
        super().__init__()
        self.image, self.text = copy.deepcopy(towers.image), copy.deepcopy(towers.text)
        self.image_head, self.text_head = (self.head(tower.width, args) for tower in (self.image, self.text))
        loss, self.temperature = args.loss or self.start[0], args.temperature or self.start[1]
        self.logit_scale = nn.Parameter(torch.tensor([math.log(1 / self.temperature)]))
        self.logit_bias = nn.Parameter(torch.tensor([-10.0])) if loss == "siglip" else None
        self.criterion: nn.Module = SigLIPLoss() if loss == "siglip" else CLIPLoss()
        Signed.clamp_scale(self)

    def loss(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        (z_image, image_penalty), (z_text, text_penalty) = (
            self.image_head(image_features),
            self.text_head(text_features),
        )
        return self.contrast(z_image.float(), z_text.float()) + image_penalty + text_penalty

    def contrast(self, z_image: Tensor, z_text: Tensor) -> Tensor:
        return self.criterion(safe_normalize(z_image), safe_normalize(z_text), self.logit_scale.exp(), self.logit_bias)

    def rows(self, head: Head, features: Tensor) -> Tensor:
        """Embeddings whose dot product is the similarity."""
        return safe_normalize(head(features)[0].float())

    def param_groups(self, args: argparse.Namespace) -> list[dict[str, Any]]:
        trained = [tower for tower in (self.image, self.text) if any(p.requires_grad for p in tower.parameters())]
        groups = param_groups(*trained, lr=args.tower_lr, weight_decay=args.weight_decay) if trained else []
        groups += param_groups(self.image_head, self.text_head, lr=args.lr, weight_decay=args.weight_decay)
        scales = [p for p in (self.logit_scale, self.logit_bias) if p is not None]
        return [*groups, {"params": scales, "lr": args.lr, "weight_decay": 0.0}]

    @torch.no_grad()
    def clamp_scale(self) -> bool:
        """Keep the temperature in its range; whether it had left it."""
        before = self.logit_scale.clone()
        coldest, warmest = TEMPERATURES
        return not torch.equal(self.logit_scale.clamp_(-math.log(warmest), -math.log(coldest)), before)


class NonNegative(Signed):
    """The same, with embeddings that cannot be negative."""

    head = NonNegHead
    start = ("siglip", 0.1)


class Gated(NonNegative):
    """The same, with a gate on each tower."""

    head = GatedHead


class TriFactor(Signed):
    """Decorrelated dimensions, each with a trained importance s: the similarity is u^T diag(s) u' of unit rows.

    The importances multiply the logits, so the scale is not learned a second time.
    """

    head = NonNegHead

    def __init__(self, towers: Towers, args: argparse.Namespace) -> None:
        super().__init__(towers, args)
        self.logit_scale, self.logit_bias = None, None
        self.importance = FeatureImportance(args.dim)
        self.criterion = TriFactorContrast(
            importance=self.importance,
            temperature=self.temperature,
            decorrelation_weight=args.decorrelation,
            two_towers=True,
        )

    def contrast(self, z_image: Tensor, z_text: Tensor) -> Tensor:
        return self.criterion(z_image, z_text)

    def rows(self, head: Head, features: Tensor) -> Tensor:
        return super().rows(head, features) * self.importance().sqrt()

    def param_groups(self, args: argparse.Namespace) -> list[dict[str, Any]]:
        importance = param_groups(self.importance, lr=30 * args.lr, weight_decay=0.0)  # it has far to go
        return super().param_groups(args) + importance

    def clamp_scale(self) -> bool:
        """No scale to clamp."""
        return False


ARMS = {"signed": Signed, "nonneg": NonNegative, "gated": Gated, "trifactor": TriFactor}
TITLES = {
    "frozen": "frozen start",
    "signed": "signed",
    "nonneg": "non-negative",
    "gated": "non-negative, gated",
    "trifactor": "non-negative, tri-factor",
}
