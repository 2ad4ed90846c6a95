"""The lowest versions that are declared are the ones that `make test-lowest` runs."""

from __future__ import annotations

import pathlib

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_every_lower_bound_is_the_version_that_is_run() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads pyproject.toml")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for name in ("plots", "metrics", "report") for line in extras[name])]
    declared = [Requirement(line) for line in lines]
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    run = {pin.name: pin.specifier for pin in map(Requirement, (x for x in lines if x and not x.startswith("#")))}
    for requirement in declared:
        (bound,), (pin,) = requirement.specifier, run[requirement.name]
        assert (bound.operator, pin.operator) == (">=", "==")
        assert Version(bound.version) == Version(pin.version), f"{requirement} is declared, {pin} is run"
