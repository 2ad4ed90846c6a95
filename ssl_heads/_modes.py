"""Modes of torch that heads and losses run in: autocast, inference mode, torch.func, forward mode, tracers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx import Proxy

P = ParamSpec("P")
R = TypeVar("R")


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Autocast off for the device of `x`; devices that have none, such as meta, have nothing to switch off."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if has_autocast(device) else nullcontext()


def has_autocast(device: str) -> bool:
    """Whether the device has an autocast; those that torch compiles for do, and torch 2.6 cannot trace the query."""
    return device != "meta" and (torch.compiler.is_compiling() or torch.amp.is_autocast_available(device))


def saveable(x: Tensor) -> Tensor:
    """`x`, or a copy of an inference tensor, which autograd cannot save for a backward pass."""
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled() or not x.is_inference():
        return x
    return x.clone()


def is_transformed() -> bool:
    """Whether torch.func or forward mode differentiates: closed forms for reverse mode then give way to expressions."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def is_traced() -> bool:
    """Whether torch.jit.trace runs: what is saved then holds torch's operators only."""
    traced: bool = torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    return traced


def is_recorded(x: object) -> bool:
    """Whether torch.fx or torch.jit.trace records the operations on `x`; checks of a shape are left out then."""
    return isinstance(x, Proxy) or is_traced()


def one_node(function: Callable[Concatenate[Tensor, P], R]) -> Callable[Concatenate[Tensor, P], R]:
    """A function that torch.fx records as one call, without the operations inside."""

    @functools.wraps(function)
    def call(x: Tensor, /, *args: P.args, **kwargs: P.kwargs) -> R:
        recorded: Any = x
        if isinstance(recorded, Proxy):
            node: Any = recorded.tracer.create_proxy("call_function", call, (x, *args), kwargs)
            return cast("R", node)
        return function(x, *args, **kwargs)

    return call
