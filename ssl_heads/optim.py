"""Parameter groups for an optimiser."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from ssl_heads import _check
from ssl_heads.heads.gate import BayesianGate
from ssl_heads.heads.importance import FeatureImportance


def param_groups(
    *modules: nn.Module,
    lr: float,
    weight_decay: float,
    gate_lr: float | None = None,
    importance_lr: float | None = None,
) -> list[dict[str, Any]]:
    """Collect the trainable parameters of modules into groups for an optimiser.

    Weight decay falls on matrices and kernels only: biases, normalisation scales and the importance of tri-factor
    contrast have one dimension and get none. Pass the backbone, the heads, and a loss that owns parameters; a parameter
    that two modules share appears once.

    Parameters that FSDP1 (`FullyShardedDataParallel`) has flattened are one-dimensional, matrices too, and refused:
    call this before it wraps the model with `use_orig_params=True`, which keeps the parameters and shards their data.
    FSDP2 (`fully_shard`) keeps the shapes.

    Args:
        modules: Backbone, heads and losses.
        lr: Learning rate.
        weight_decay: For parameters of two or more dimensions.
        gate_lr: Learning rate for every `BayesianGate` inside the modules; None takes `lr`.
        importance_lr: The same for every `FeatureImportance`, in a model or in a loss.

    Returns:
        At most five groups, none empty, with the keys `params`, `lr` and `weight_decay`.

    Raises:
        ValueError: If no module is given, a module has no trainable parameter, a rate is out of range, or FSDP1 has
            flattened the parameters.

    Example:
        >>> import torch
        >>> from ssl_heads.heads import BayesianGate, FeatureImportance
        >>> head, gate = FeatureImportance(8), BayesianGate(16, 8)
        >>> optimizer = torch.optim.AdamW(param_groups(head, gate, lr=1e-3, weight_decay=0.01, gate_lr=1e-2))
        >>> [(len(g["params"]), g["lr"], g["weight_decay"]) for g in optimizer.param_groups]
        [(1, 0.001, 0.0), (2, 0.01, 0.01), (4, 0.01, 0.0)]
    """
    rates_given = {"lr": lr, "weight_decay": weight_decay, "gate_lr": gate_lr, "importance_lr": importance_lr}
    for name, given in rates_given.items():
        if given is not None:
            _check.not_negative(name, given)
    if not modules:
        raise ValueError("param_groups needs at least one module")
    for module in modules:
        if not isinstance(module, nn.Module):
            raise ValueError(f"param_groups takes modules, got {type(module).__name__}: pass model, not its parameters")
        if not any(p.requires_grad for p in module.parameters()):
            raise ValueError(
                f"{type(module).__name__} has no trainable parameter; leave it out, or unfreeze it before this call"
            )
    everything = nn.ModuleList(modules)
    rates: dict[nn.Parameter, float] = {}
    for kind, rate in ((BayesianGate, gate_lr), (FeatureImportance, importance_lr)):
        if rate is not None:
            rates.update((p, rate) for m in everything.modules() if isinstance(m, kind) for p in m.parameters())
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for p in everything.parameters():
        if p.requires_grad:
            _refuse_unknown_shape(p)
            groups.setdefault((rates.get(p, lr), weight_decay if p.ndim > 1 else 0.0), []).append(p)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]


def _refuse_unknown_shape(p: nn.Parameter) -> None:
    if is_lazy(p):
        raise ValueError("a lazy module has no shapes yet, and what decays is unknown: run a batch through it first")
    if hasattr(p, "ds_shape"):
        raise ValueError("ZeRO-3 has emptied a parameter: call param_groups before deepspeed.initialize")
    if getattr(p, "_fsdp_flattened", False):
        raise ValueError(
            f"FSDP1 has flattened a parameter, now of shape {tuple(p.shape)}: which were matrices, and decay, is no "
            "longer known. Call param_groups before FullyShardedDataParallel(model, use_orig_params=True), which keeps "
            "the parameters, or shard with torch.distributed.fsdp.fully_shard"
        )
