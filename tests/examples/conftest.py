"""Examples import each other as scripts do, from their own folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the emoji are kept, drawn once for all examples."""
    return tmp_path_factory.mktemp("openmoji")
