"""What the ranks of a pool are asked to do, one function a question."""

from __future__ import annotations

import copy
import unittest.mock
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from ssl_heads import FeatureImportance, NTXentLoss, SigLIPLoss, TriFactorContrast
from ssl_heads.adapters import HuggingFaceCLIP, OpenCLIP
from ssl_heads.distributed import Shard, all_gather_rows, all_reduce_sum, collectives, ring
from ssl_heads.functional import decorrelation, info_nce, nt_xent, sup_con
from ssl_heads.similarity import tiled


def rows(total: int, width: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(total, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def own_rows(x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    return x.split(sizes)[dist.get_rank()]


# ---------------------------------------------------------------------------------------------------------- collectives


def gather_and_weigh(sizes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """What is gathered, and the gradient of sum_r <weight_r, gathered> with respect to the own rows."""
    x = own_rows(rows(sum(sizes)), sizes).requires_grad_()
    gathered = all_gather_rows(x)
    (rows(sum(sizes), seed=1 + dist.get_rank()) * gathered).sum().backward()
    return gathered.detach(), x.grad


def gather_and_scatter(sizes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """`gather_and_weigh` with the reduce-scatter that a GPU's backend has."""
    with unittest.mock.patch.object(collectives, "has_reduce_scatter", return_value=True):
        return gather_and_weigh(sizes)


def reduce_and_weigh() -> tuple[Tensor, Tensor]:
    x = rows(3, seed=dist.get_rank()).requires_grad_()
    total = all_reduce_sum(x)
    (rows(3, seed=10 + dist.get_rank()) * total).sum().backward()
    return total.detach(), x.grad


def gather_integers(sizes: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return all_gather_rows(own_rows(torch.arange(sum(sizes)).to(dtype), sizes))


def log_sum_exp_of_columns(columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """This rank's parts, of which the first column is -inf everywhere and the second here alone; value and gradient."""
    x = rows(1, columns, seed=dist.get_rank())[0]
    x[0] = -torch.inf
    if dist.get_rank() == 0:
        x[1] = -torch.inf
    x.requires_grad_()
    value = collectives.global_log_sum_exp(x, None)
    value[1:].sum().backward()
    return x.detach(), value.detach(), x.grad


def messages(gather: str, multi_positive: str) -> tuple[list[torch.Size], int]:
    """Shapes of floating rows that a step of SupCon gathers on this rank, and how often the ring passes a block on."""
    gathered: list[torch.Size] = []
    into, exchange = collectives._all_gather_into, ring.RingExchange
    passed = unittest.mock.Mock(side_effect=exchange)

    def counted(output: Tensor, x: Tensor, group: Any) -> None:
        if x.is_floating_point():
            gathered.append(x.shape)
        into(output, x, group)

    z, labels = torch.randn(4, 3, requires_grad=True), torch.arange(4) % 2
    with (
        unittest.mock.patch.object(collectives, "_all_gather_into", counted),
        unittest.mock.patch.object(ring, "RingExchange", passed),
    ):
        sup_con(z, labels, multi_positive=multi_positive, gather=gather).backward()
    return gathered, passed.call_count


# ------------------------------------------------------------------------------------------------------------- training


def encoder() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 5)).double()


class Model(nn.Module):
    """A network that owns its loss, as TriFactorContrast with an importance of its own asks for."""

    def __init__(self, gather: str) -> None:
        super().__init__()
        self.encoder = encoder()
        self.loss = TriFactorContrast(5, gather=gather).double()

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        return self.loss(*self.encoder(torch.cat([x0, x1])).chunk(2))


def batches(sizes: tuple[int, ...], steps: int) -> list[tuple[Tensor, Tensor]]:
    return [(rows(sum(sizes), seed=2 * i), rows(sum(sizes), seed=2 * i + 1)) for i in range(steps)]


def train(
    gather: str, sizes: tuple[int, ...] | None, of: tuple[int, ...], steps: int = 3, apart: bool = False
) -> list[Tensor]:
    """Parameters after a few steps of SGD on the own rows under DistributedDataParallel, or on all rows without it.

    Network and loss are wrapped together, or each by itself.
    """
    model: nn.Module = Model("none" if sizes is None else gather)
    parameters = list(model.parameters())
    if sizes is not None and apart:
        model.encoder, model.loss = DistributedDataParallel(model.encoder), DistributedDataParallel(model.loss)
    elif sizes is not None:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    for x0, x1 in batches(of, steps):
        if sizes is not None:
            x0, x1 = own_rows(x0, sizes), own_rows(x1, sizes)
        optimizer.zero_grad()
        model(x0, x1).backward()
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def accumulate(gather: str, sizes: tuple[int, ...]) -> list[Tensor]:
    """Two batches into one gradient, the first under no_sync."""
    model = DistributedDataParallel(encoder())
    loss = NTXentLoss(gather=gather)
    (first, second) = batches(sizes, 2)
    with model.no_sync():
        loss(*(model(torch.cat([own_rows(x, sizes) for x in first])).chunk(2))).backward()
    loss(*(model(torch.cat([own_rows(x, sizes) for x in second])).chunk(2))).backward()
    return [parameter.grad for parameter in model.parameters()]


def cached(gather: str, sizes: tuple[int, ...]) -> list[Tensor]:
    """GradCache: embeddings without a graph, the loss on them as leaves, then the encoder chunk by chunk."""
    model = DistributedDataParallel(encoder())
    x0, x1 = (own_rows(x, sizes) for x in batches(sizes, 1)[0])
    with torch.no_grad():
        z0, z1 = model.module(x0), model.module(x1)
    leaves = z0.requires_grad_(), z1.requires_grad_()
    NTXentLoss(gather=gather)(*leaves).backward()
    pieces = [(x, g) for whole, z in ((x0, z0), (x1, z1)) for x, g in zip(whole.split(2), z.grad.split(2), strict=True)]
    for x, gradient in pieces[:-1]:
        with model.no_sync():
            model(x).backward(gradient)
    x, gradient = pieces[-1]
    model(x).backward(gradient)
    return [parameter.grad for parameter in model.parameters()]


def scaled_under_autocast(gather: str, sizes: tuple[int, ...], scaled: bool) -> list[Tensor]:
    """A step of a GradScaler under autocast, or the plain gradient of the same half-precision forward."""
    model = encoder().float()
    whole = batches(sizes, 1)[0]
    x0, x1 = (x.float() if not scaled else own_rows(x.float(), sizes) for x in whole)
    loss = NTXentLoss(gather=gather if scaled else "none")
    with torch.autocast("cpu", torch.bfloat16):
        z0, z1 = model(x0), model(x1)
        value = loss(z0, z1)
    if not scaled:
        value.backward()
        return [parameter.grad for parameter in model.parameters()]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scaler.scale(value).backward()
    scaler.unscale_(optimizer)
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()
    return [parameter.grad for parameter in model.parameters()]


def sharded(gather: str, sizes: tuple[int, ...]) -> list[Tensor]:
    """Parameters spread over the ranks by FSDP2."""
    model = encoder()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    x0, x1 = (own_rows(x, sizes) for x in batches(sizes, 1)[0])
    NTXentLoss(gather=gather)(*model(torch.cat([x0, x1])).chunk(2)).backward()
    return [parameter.grad.full_tensor() for parameter in model.parameters()]


def compiled(gather: str, sizes: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    z0, z1 = (own_rows(z, sizes) for z in batches(sizes, 1)[0])
    loss, results = NTXentLoss(gather=gather), []
    for function in (loss, torch.compile(loss, backend="aot_eager")):
        z = z0.clone().requires_grad_()
        value = function(z, z1.clone().requires_grad_())
        value.backward()
        results += [value.detach(), z.grad]
    return tuple(results)


# ---------------------------------------------------------------------------------------------------- groups and copies


def in_subgroup(gather: str, members: list[int], size: int) -> tuple[float, float, float] | None:
    """The loss over the rows of some ranks, through the module and through a deep copy of it; None on the others."""
    group = dist.new_group(members)
    if dist.get_rank() not in members:
        return None
    position = members.index(dist.get_rank())
    total = size * len(members)
    z0, z1 = (rows(total, seed=s)[position * size :][:size] for s in (0, 1))
    loss = NTXentLoss(gather=gather, group=group)
    values = [loss(z0, z1), copy.deepcopy(loss)(z0, z1)]
    mean = torch.stack(values).double()
    dist.all_reduce(mean, group=group)
    expected = nt_xent(rows(total, seed=0), rows(total, seed=1))
    return *(mean / len(members)).tolist(), expected.item()


def group_of_one(gather: str) -> tuple[float, float]:
    groups = [dist.new_group([rank]) for rank in range(dist.get_world_size())]
    z0, z1 = rows(4, seed=dist.get_rank()), rows(4, seed=9)
    return nt_xent(z0, z1, gather=gather, group=groups[dist.get_rank()]).item(), nt_xent(z0, z1).item()


def without_gathering() -> tuple[float, float]:
    """Ranks that do not gather do not wait for each other: only rank 0 computes a loss."""
    if dist.get_rank() > 0:
        return 0.0, 0.0
    z0, z1 = rows(4, seed=0), rows(4, seed=1)
    return NTXentLoss()(z0, z1).item(), nt_xent(z0, z1).item()


# --------------------------------------------------------------------------------------------------------------- faults


def with_sizes(gather: str, sizes: tuple[int, ...], widths: tuple[int, ...]) -> None:
    rank = dist.get_rank()
    z = torch.randn(2, sizes[rank], widths[rank])
    nt_xent(z[0], z[1], gather=gather)


def with_unequal_views(gather: str, bad_rank: int) -> None:
    nt_xent(torch.randn(4, 3), torch.randn(4 + (dist.get_rank() == bad_rank), 3), gather=gather)


def second_derivative(gather: str) -> None:
    z = torch.randn(2, 4, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(nt_xent(z[0], z[1], gather=gather, impl="dense"), z, create_graph=True)
    gradient.sum().backward()


def with_dtypes(gather: str, dtypes: list[torch.dtype]) -> None:
    z = torch.randn(2, 4, 3).to(dtypes[dist.get_rank()])
    nt_xent(z[0], z[1], gather=gather)


def gradient_on_rank_zero_only(gather: str) -> None:
    z = torch.randn(2, 4, 3, requires_grad=dist.get_rank() == 0)
    nt_xent(z[0], z[1], gather=gather).backward()


def with_nan(gather: str, bad_rank: int) -> list[float]:
    """The losses when one sample of one rank is not a number."""
    z = torch.randn(2, 4, 3)
    if dist.get_rank() == bad_rank:
        z[:, 1, 2] = torch.nan
    z = z.requires_grad_()
    losses = [
        nt_xent(z[0], z[1], gather=gather),
        nt_xent(z[0], z[1], gather=gather, impl="tiled"),
        info_nce(z[0], z[1], gather=gather),
        sup_con(z[0], torch.zeros(4, dtype=torch.long), gather=gather),
        decorrelation(z[0], gather=gather),
    ]
    torch.stack(losses).sum().backward()
    return [loss.item() for loss in losses]


# --------------------------------------------------------------------------------------------------------------- memory


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """Keeps the bytes of the largest tensor that an operator returned; tiles inside the engine do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in torch.utils._pytree.tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.bytes = max(self.bytes, leaf.untyped_storage().nbytes())
        return result


def largest_tensor(gather: str, size: int, width: int) -> int:
    """Bytes of the largest tensor that one step makes on this rank."""
    z = torch.randn(2, size, width, requires_grad=True)
    small = unittest.mock.patch.multiple(tiled, TILE=dict.fromkeys(tiled.TILE, 64), SMALLEST=16, SAVED_BYTES=0)
    with small, LargestTensor() as largest:  # the tiles are no part of what travels
        nt_xent(z[0], z[1], gather=gather, impl="tiled").backward()
    return largest.bytes


def shard_facts(sizes: tuple[int, ...]) -> Shard:
    return Shard.of("all", None, {"z": own_rows(rows(sum(sizes)), sizes)}, {"call": "test"}, lambda: None)[0]


# ------------------------------------------------------------------------ what a loss reads outside of the forward pass


class WithImportance(nn.Module):
    """A model of two towers that owns what its loss learns, as Hugging Face's Trainer and open_clip want it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = encoder().float()
        self.logit_scale = nn.Parameter(torch.tensor([1.6]))
        self.importance = FeatureImportance(5)

    def forward(self, x0: Tensor, x1: Tensor) -> dict[str, Tensor]:
        z0, z1 = (nn.functional.normalize(self.encoder(x), dim=1) for x in (x0, x1))
        return {"image_features": z0, "text_features": z1, "logit_scale": self.logit_scale.exp()}


class AsHuggingFace(WithImportance):
    def __init__(self) -> None:
        super().__init__()
        self.logit_bias = nn.Parameter(torch.tensor([-3.0]))

    def forward(self, x0: Tensor, x1: Tensor) -> dict[str, Tensor]:
        out = super().forward(x0, x1)
        return {"image_embeds": out["image_features"], "text_embeds": out["text_features"]}


def borrowing(adapter: str, wrap: str, sizes: tuple[int, ...]) -> list[dict[str, Tensor]]:
    """The gradients of two steps in one process on all rows, and on the own rows as the trainers wrap the model."""
    results = []
    for on in ("alone", wrap):
        model: nn.Module = AsHuggingFace() if adapter != "open_clip" else WithImportance()
        gather = "none" if on == "alone" else "all"
        inner: nn.Module = TriFactorContrast(importance=model.importance, two_towers=True, gather=gather)
        inner = SigLIPLoss(gather=gather) if adapter == "hugging face, siglip" else inner
        loss = HuggingFaceCLIP(inner, model) if adapter != "open_clip" else OpenCLIP(inner)
        named = dict(model.named_parameters())
        if on.startswith("ddp"):
            model = DistributedDataParallel(model, find_unused_parameters=on == "ddp, unused are looked for")
        elif on != "alone":
            mesh = init_device_mesh("cpu", (dist.get_world_size(),))
            fully_shard(model, mesh=mesh, reshard_after_forward=True)
            named = dict(model.named_parameters())
        for x0, x1 in batches(sizes, 2):
            x0, x1 = (x.float() if on == "alone" else own_rows(x.float(), sizes) for x in (x0, x1))
            out = model(x0, x1)
            (loss(**out) if adapter == "open_clip" else loss(out)).backward()
        grads = {name: p.grad for name, p in named.items()}
        used = {name: g for name, g in grads.items() if g is not None}  # SigLIPLoss reads no importance
        results.append({name: g.full_tensor() if hasattr(g, "full_tensor") else g for name, g in used.items()})
    return results
