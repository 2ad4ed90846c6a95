"""Changes of `HuggingFaceCLIP` to a model: its scale among the outputs, `return_loss=True` in its signature."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import make_dataclass
from functools import cache, reduce
from typing import Any

from torch import nn

from ssl_heads.adapters.calls import keep_in_graph


class ReturnsScale:
    """A forward hook: the outputs also hold the scale, which depends on what the loss borrows from the model.

    Read inside of the forward pass a parameter is whole, also where FSDP2 shards it again after, and
    DistributedDataParallel finds it in the graph of the outputs. The names let a copy of the model read its own.

    Args:
        borrowed: Names of the model's parameters that the loss reads outside of the forward pass.
    """

    def __init__(self, borrowed: tuple[str, ...]) -> None:
        self.borrowed = borrowed

    def __call__(self, model: nn.Module, inputs: Any, outputs: Any) -> Any:
        """The outputs, with `logit_scale` (exponentiated) and `logit_bias`."""
        if not isinstance(outputs, Mapping):
            return outputs
        kind: Any = type(outputs)
        found = dict(outputs)
        scale: Any = found.get("logit_scale")
        scale = model.logit_scale.exp() if scale is None else scale  # type: ignore[operator]
        read = (reduce(getattr, name.split("."), model) for name in self.borrowed)
        found["logit_scale"] = scale + keep_in_graph(read)
        bias: Any = getattr(model, "logit_bias", None)
        if bias is not None and found.get("logit_bias") is None:
            found["logit_bias"] = bias.clone()  # FSDP2 frees the parameter after the forward pass
        return with_scale(kind)(**found) if hasattr(kind, "__dataclass_fields__") else kind(found)


@cache
def with_scale(kind: Any) -> type:
    """The class of the outputs with two more fields; pytrees rebuild dataclasses."""
    fields = {field: Any for field in ("logit_scale", "logit_bias") if field not in kind.__dataclass_fields__}
    return make_dataclass(kind.__name__, [(name, t, None) for name, t in fields.items()], bases=(kind,))


def set_return_loss(model: nn.Module) -> None:
    """Trainer evaluates a loss without labels only where the class's forward has the default `return_loss=True`."""
    kind: Any = type(model)
    model.__class__ = with_return_loss(kind)


@cache
def with_return_loss(kind: Any) -> Any:
    """The class with `return_loss=True` in the signature of its forward, which is called as before."""
    signature = inspect.signature(kind.forward)
    asked = signature.parameters.get("return_loss")
    if asked is None or asked.default is True:
        return kind

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return kind.forward(self, *args, **kwargs)

    def reduce_(self: nn.Module) -> tuple[Any, ...]:
        return rebuilt, (kind,), self.__dict__

    parameters = [p.replace(default=True) if p is asked else p for p in signature.parameters.values()]
    forward.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    named = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(kind.__name__, (kind,), {**named, "forward": forward, "__reduce__": reduce_})


def rebuilt(kind: Any) -> Any:
    """An empty model of the changed class: pickles name the importable class."""
    changed = with_return_loss(kind)
    return changed.__new__(changed)
