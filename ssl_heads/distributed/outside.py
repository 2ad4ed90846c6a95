"""Functions that torch.compile leaves out of its graphs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


class outside_graph(Generic[P, R]):  # a decorator
    """A function outside of any graph of torch.compile: collectives, whose group is known at run time only.

    The disabled function is made once, because a new one is compiled again, and only where the compiler is in memory,
    because `torch.compiler.disable` imports the compiler.
    """

    def __init__(self, function: Callable[P, R]) -> None:
        self.function = function
        self.disabled: Callable[P, R] | None = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function, outside of any graph."""
        if self.disabled is None:
            if not torch.compiler.is_compiling() and "torch._dynamo" not in sys.modules:
                return self.function(*args, **kwargs)
            self.disabled = torch.compiler.disable(self.function)  # type: ignore[no-untyped-call]
        return self.disabled(*args, **kwargs)
