"""Modules of a SentenceTransformer, which it saves and loads with the others."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ssl_heads.adapters.calls import keep_in_graph

WEIGHTS, CONFIGURATION = "pytorch_model.bin", "config.json"


class SavedModule(nn.Module):
    """A module that sentence-transformers saves and loads: a configuration and weights in a folder."""

    def __init__(self) -> None:
        super().__init__()
        # sentence-transformers checks the class of modules, and is imported before a model is built: sys.modules has it
        theirs = sys.modules.get("sentence_transformers.base.modules")
        if theirs is not None:
            theirs.Module.register(type(self))

    def get_config_dict(self) -> dict[str, Any]:
        """The configuration that rebuilds the module."""
        return {}

    def on_model_ready(self, model: nn.Module) -> None:
        """Do nothing when the model is complete: no module here depends on the others."""

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True) -> None:
        """Write the configuration and the weights into a folder."""
        Path(output_path, CONFIGURATION).write_text(json.dumps(self.get_config_dict(), indent=4))
        torch.save(self.state_dict(), Path(output_path, WEIGHTS))

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **where: Any) -> Self:
        """Read configuration and weights from a folder, or from the Hugging Face Hub."""
        find = importlib.import_module("sentence_transformers.util").load_file_path
        hub = {name: where[name] for name in ("token", "cache_folder", "revision", "local_files_only") if name in where}
        configuration, weights = (find(model_name_or_path, name, subfolder, **hub) for name in (CONFIGURATION, WEIGHTS))
        if configuration is None or weights is None:
            raise ValueError(f"{model_name_or_path}/{subfolder} holds no {CONFIGURATION} and {WEIGHTS}")
        return cls._rebuilt(
            json.loads(Path(configuration).read_text()), torch.load(weights, map_location="cpu", weights_only=True)
        )

    @classmethod
    def _rebuilt(cls, configuration: dict[str, Any], weights: dict[str, Tensor]) -> Self:
        raise NotImplementedError


class SentenceTransformersHead(SavedModule):
    """Any head as a module of a SentenceTransformer: after `Pooling`, in place of a `Dense`.

    `SentenceTransformer(path, trust_remote_code=True)` loads it again, where this library is installed: the flag is
    sentence-transformers' own, for modules of other packages.

    Args:
        head: Embeddings to embeddings. Its class must keep each argument of its constructor as an attribute of the same
            name, as the heads of this library do; arguments may be modules, and a Sequential holds such heads.

    Raises:
        ValueError: If an argument is not kept, or cannot be written as JSON.

    Example:
        >>> from ssl_heads import NonNegProjection
        >>> from ssl_heads.adapters import SentenceTransformersHead
        >>> head = SentenceTransformersHead(NonNegProjection(384, 512, 64))
        >>> head({"sentence_embedding": torch.randn(8, 384)})["sentence_embedding"].shape
        torch.Size([8, 64])
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self._recipe = recipe(head)
        self.head = head

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        """Replace the sentence embeddings by the head's."""
        features["sentence_embedding"] = self.head(features["sentence_embedding"])
        return features

    def get_embedding_dimension(self) -> int | None:
        """The width of the head's output, where the head says it."""
        return width(self.head)

    def get_config_dict(self) -> dict[str, Any]:
        """The class of the head and its arguments."""
        return self._recipe

    @classmethod
    def _rebuilt(cls, configuration: dict[str, Any], weights: dict[str, Tensor]) -> Self:
        module = cls(rebuild(configuration))
        module.load_state_dict(weights)
        return module


class LossState(SavedModule):
    """The state of a loss as a module of the SentenceTransformer: equal on all ranks, saved and resumed with it.

    Features pass through. The embeddings depend on the parameters, times zero, so that DistributedDataParallel
    finds them.
    """

    def __init__(self, state: nn.Module) -> None:
        super().__init__()
        self.state = state

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        """The features, as they come."""
        if torch.is_grad_enabled():
            nothing = keep_in_graph(p for p in self.state.parameters() if p.requires_grad)
            features["sentence_embedding"] = features["sentence_embedding"] + nothing
        return features

    def moved_to(self, loss: nn.Module) -> LossState:
        """The same state, learned further by this loss."""
        there, here = ({name: x.shape for name, x in part.state_dict().items()} for part in (self.state, loss))
        if there != here:
            other = sorted(f"{name} {tuple(shape)}" for name, shape in there.items() ^ here.items())
            raise ValueError(
                f"the model ends with what another loss learned, which does not fit {type(loss).__name__}: "
                f"{', '.join(other)} differ. Take it off first: SentenceTransformer(modules=list(model)[:-1])"
            )
        loss.load_state_dict(self.state.state_dict())
        return LossState(loss)

    @classmethod
    def _rebuilt(cls, configuration: dict[str, Any], weights: dict[str, Tensor]) -> Self:
        state = nn.Module()
        for name, x in weights.items():
            *parents, last = name.removeprefix("state.").split(".")
            place = state
            for parent in parents:
                if not hasattr(place, parent):
                    place.add_module(parent, nn.Module())
                place = getattr(place, parent)
            place.register_buffer(last, x)
        return cls(state)


def width(module: nn.Module) -> int | None:
    """The `out_features` of a module, or else of the last of its parts that has them."""
    own = getattr(module, "out_features", None)
    widths = map(width, reversed(list(module.children())))
    return own if isinstance(own, int) else next((found for found in widths if found is not None), None)


def recipe(module: nn.Module) -> dict[str, Any]:
    """The class of a module and the arguments that rebuild it."""
    kind = type(module)
    named = {"class": f"{kind.__module__}.{kind.__qualname__}"}
    if kind is nn.Sequential:
        return {**named, "modules": {name: recipe(child) for name, child in module.named_children()}}
    return {**named, "arguments": dict(arguments(module))}


def arguments(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The arguments of a module's constructor, which it keeps as attributes."""
    name = type(module).__name__
    for argument in inspect.signature(type(module)).parameters:
        if argument in ("device", "dtype") and not hasattr(module, argument):
            continue  # placement of torch's layers, no part of the function
        if not hasattr(module, argument):
            raise ValueError(
                f"{name} does not keep its argument {argument}, so it could not be built again when it is loaded: set "
                f"self.{argument} in its constructor"
            )
        value = getattr(module, argument)
        if argument == "bias" and not isinstance(value, bool):
            value = value is not None  # a linear layer keeps the vector, not the flag
        if isinstance(value, nn.Module):
            yield argument, recipe(value)
        elif value is None or isinstance(value, (bool, int, float, str)):
            yield argument, value
        elif isinstance(value, (tuple, list)) and all(isinstance(part, int) for part in value):
            yield argument, list(value)  # a shape
        else:
            raise ValueError(f"{argument}={value!r} of {name} cannot be written into a configuration: {type(value)}")


def rebuild(of: dict[str, Any]) -> nn.Module:
    """The module that a recipe describes; its class is imported, and must be a module's."""
    package, _, name = of["class"].rpartition(".")
    kind = getattr(importlib.import_module(package), name)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ValueError(f"{of['class']} is no class of modules")
    if "modules" in of:
        return nn.Sequential(OrderedDict((name, rebuild(child)) for name, child in of["modules"].items()))
    made = {k: rebuild(v) if isinstance(v, dict) else v for k, v in of["arguments"].items()}
    return kind(**made)
