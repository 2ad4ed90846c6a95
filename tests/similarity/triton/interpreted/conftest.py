from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder

if not hasattr(InterpreterBuilder, "get_int1_ty"):
    # the interpreter of Triton 3.2 asks itself for the type of a boolean and has none; the compiler has
    InterpreterBuilder.get_int1_ty = lambda builder: tl.int1


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Every uninitialised buffer is NaN: an element that no kernel wrote shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.ones(1).new_empty(8).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
