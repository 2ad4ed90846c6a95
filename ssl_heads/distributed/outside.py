"""Functions that torch.compile leaves out of its graphs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from typing_extensions import ParamSpec

P = ParamSpec("P")
R = TypeVar("R")


class outside_graph(Generic[P, R]):  # a decorator
    """Collectives of a group that is named at run time break the graph of torch.compile, and only they.

    The disabled function is made once, because the compiler compiles again for a new one, and only where the compiler
    is in memory, because `torch.compiler.disable` imports the compiler.
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
