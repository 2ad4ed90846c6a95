"""What the parameters of a head were before an example trained it."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn


class Starts:
    """Every module that the example makes of a class, with a copy of its parameters as they were made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, example: ModuleType, name: str) -> None:
        self.made: list[tuple[nn.Module, list[torch.Tensor]]] = []
        original = getattr(example, name)

        def make(*args: Any, **kwargs: Any) -> nn.Module:
            module = original(*args, **kwargs)
            self.made.append((module, [p.detach().clone() for p in module.parameters()]))
            return module

        monkeypatch.setattr(example, name, make)

    def all_moved(self) -> bool:
        """Whether no parameter of any of them is what it was."""
        pairs = [(p, q) for module, start in self.made for p, q in zip(module.parameters(), start, strict=True)]
        return bool(pairs) and all(not torch.equal(p, q) for p, q in pairs)
