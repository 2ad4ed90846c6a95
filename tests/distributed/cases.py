"""One training step of every loss on a part of a batch, and on the whole of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ssl_heads import functional as f

WIDTH, FEATURES = 6, 5
Parameters = dict[str, Tensor]


class Batch(NamedTuple):
    """Two views of embeddings, and what belongs to their rows."""

    z0: Tensor
    z1: Tensor
    ids: Tensor
    labels: Tensor
    queue: Tensor


Loss = Callable[..., Tensor]
TEMPERATURE = {"temperature": 0.3}
SCALE_AND_BIAS = {"scale": 4.0, "bias": -1.5}


def importance(p: Parameters) -> Tensor:
    return torch.nn.functional.softplus(p["theta"])


LOSSES: dict[str, tuple[dict[str, Any], Loss]] = {
    "nt_xent": (TEMPERATURE, lambda b, p, **o: f.nt_xent(b.z0, b.z1, p["temperature"], **o)),
    "nt_xent, ids": (TEMPERATURE, lambda b, p, **o: f.nt_xent(b.z0, b.z1, p["temperature"], ids=b.ids, **o)),
    "nt_xent, raw rows": (
        TEMPERATURE,
        lambda b, p, **o: f.nt_xent(b.z0, b.z1, p["temperature"], normalize=False, **o),
    ),
    "nt_xent, fixed temperature": ({}, lambda b, p, **o: f.nt_xent(b.z0, b.z1, 0.2, **o)),
    "info_nce": (TEMPERATURE, lambda b, p, **o: f.info_nce(b.z0, b.z1, None, p["temperature"], **o)),
    "info_nce, ids": (TEMPERATURE, lambda b, p, **o: f.info_nce(b.z0, b.z1, None, p["temperature"], ids=b.ids, **o)),
    "info_nce, keys frozen": (
        TEMPERATURE,
        lambda b, p, **o: f.info_nce(b.z0, b.z1.detach(), None, p["temperature"], **o),
    ),
    "info_nce, queue": (TEMPERATURE, lambda b, p, **o: f.info_nce(b.z0, b.z1, b.queue, p["temperature"], **o)),
    "clip": ({"scale": 4.0}, lambda b, p, **o: f.clip_loss(b.z0, b.z1, p["scale"], **o)),
    "siglip": (SCALE_AND_BIAS, lambda b, p, **o: f.siglip_loss(b.z0, b.z1, p["scale"], p["bias"], **o)),
    "sup_con, out": (TEMPERATURE, lambda b, p, **o: f.sup_con(b.z0, b.labels, p["temperature"], **o)),
    "sup_con, in": (
        TEMPERATURE,
        lambda b, p, **o: f.sup_con(b.z0, b.labels, p["temperature"], multi_positive="in", **o),
    ),
    "spectral": ({}, lambda b, p, impl, **o: f.spectral_contrastive(b.z0, b.z1, **o)),
    "decorrelation": ({}, lambda b, p, impl, **o: f.decorrelation(torch.cat([b.z0, b.z1]), **o)),
    "tri_factor": (
        {"theta": None, **TEMPERATURE},
        lambda b, p, **o: f.tri_factor_contrast(b.z0, b.z1, importance(p), p["temperature"], **o),
    ),
    "tri_factor, two towers": (
        {"theta": None, **TEMPERATURE},
        lambda b, p, **o: f.tri_factor_two_towers(b.z0, b.z1, importance(p), p["temperature"], **o),
    ),
    "tri_factor, spectral": (
        {"theta": None},
        lambda b, p, impl, **o: f.tri_factor_spectral(b.z0, b.z1, importance(p), **o),
    ),
    "tri_factor, spectral, two towers": (
        {"theta": None},
        lambda b, p, impl, **o: f.tri_factor_spectral_two_towers(b.z0, b.z1, importance(p), **o),
    ),
}


class Step(NamedTuple):
    """What one step gives: the loss, and the gradients of the embeddings and of the parameters."""

    loss: Tensor
    gradients: dict[str, Tensor]


def step(
    name: str,
    sizes: tuple[int, ...],
    dtype: torch.dtype,
    gather: str,
    impl: str,
    rank: int | None,
    computed_in: torch.dtype | None = None,
) -> Step:
    """Forward and backward of one rank's rows, or of the whole batch for ``rank=None``; no communication of its own.

    The embeddings are rounded to ``dtype``, and then computed with in another one on request.
    """
    initial, loss = LOSSES[name]
    total = sum(sizes)
    generator = torch.Generator().manual_seed(total)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x0, encoder, queue = random(total, FEATURES), random(FEATURES, WIDTH), random(7, WIDTH)
    x1 = x0 + 0.5 * random(total, FEATURES)
    values = {key: random(WIDTH) if value is None else torch.tensor([value]) for key, value in initial.items()}
    labels, ids = torch.arange(total) % 4, torch.arange(total) // 2 * 5
    labels[-1] = 77  # a row without a positive
    labels[1::5] = ids[::4] = -1  # rows without a label or an id
    start = 0 if rank is None else sum(sizes[:rank])
    own = slice(start, total if rank is None else start + sizes[rank])

    computed_in = computed_in or dtype
    wide = torch.promote_types(computed_in, torch.float32)
    weight = encoder.requires_grad_()
    parameters = {key: value.to(wide).requires_grad_() for key, value in values.items()}
    z0, z1 = ((x[own] @ weight).to(dtype).to(computed_in) for x in (x0, x1))
    for z in (z0, z1):
        z.retain_grad()
    batch = Batch(z0, z1, ids[own], labels[own], queue.to(dtype).to(computed_in))
    value = loss(batch, parameters, gather="none" if rank is None else gather, impl=impl)
    value.backward()
    gradients = {"encoder": weight.grad, "z0": z0.grad, "z1": z1.grad}
    gradients |= {key: parameter.grad for key, parameter in parameters.items()}
    return Step(value.detach().double(), {key: g.double() for key, g in gradients.items() if g is not None})


Setting = tuple[torch.dtype, str]


def steps(name: str, sizes: tuple[int, ...], gather: str, settings: list[Setting]) -> list[Step]:
    """This rank's step in every setting of dtype and implementation."""
    return [step(name, sizes, dtype, gather, impl, dist.get_rank()) for dtype, impl in settings]


def averaged(ranks: list[Step]) -> Step:
    """The mean over ranks, as DistributedDataParallel takes it; rows of embeddings in rank order."""
    gradients = {
        key: torch.cat([s.gradients[key] for s in ranks]) / len(ranks)
        if key in ("z0", "z1")
        else torch.stack([s.gradients[key] for s in ranks]).mean(0)
        for key in ranks[0].gradients
    }
    return Step(torch.stack([s.loss for s in ranks]).mean(), gradients)
