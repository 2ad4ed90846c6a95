"""The pages name files that exist and names that stand in them; modules import downwards, as the map says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]
PATH = r"(?:ssl_heads|tests|docs|examples|benchmarks)/[\w./-]*|[\w-]+\.(?:md|txt|toml)|Makefile"
SPANS = re.compile(rf"`({PATH})`")
# "`a` and `b` in `path`": the names stand in the file
NAMES_IN_FILES = re.compile(rf"((?:`\w+`(?:,? and |, )?)+) in `({PATH})`")
LINKS = re.compile(r"\]\((?!https?:)([\w./-]+)(?:#[\w-]*)?\)")


def exists(path: str) -> bool:
    """Whether the file is there; X stands for a name that is chosen by whoever adds a file."""
    place = ROOT / path
    return place.parent.is_dir() if re.fullmatch(r"(test_)?X\..*", place.name) else place.exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_and_every_link_leads_to_a_file(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert [path for path in SPANS.findall(text) if not exists(path)] == []
    assert [link for link in LINKS.findall(text) if not (page.parent / link).exists()] == []


def test_every_name_of_the_architecture_stands_in_the_file_beside_it() -> None:
    found = NAMES_IN_FILES.findall((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    pairs = [(name, path) for names, path in found for name in re.findall(r"\w+", names) if name != "and"]
    assert len(pairs) >= 15
    assert [(name, path) for name, path in pairs if not re.search(rf"\b{name}\b", (ROOT / path).read_text())] == []


# The layers of docs/architecture.md from the ground floor up; a file or folder of ssl_heads/ is in one of them.
LAYERS = (
    {"_check", "_modes", "_numerics", "_start", "recomputing"},
    {"similarity", "rowwise"},
    {"distributed"},
    {"functional"},
    {"heads", "losses", "metrics"},
    {
        "adapters",
        "optim",
        "plots",
        "_images",
        "_samples",
        "_words",
        "dimensions",
        "select",
        "report",
        "__main__",
        "queue",
    },
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}


def imported(path: Path) -> set[str]:
    """The files and folders of ssl_heads/ that a module imports from."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)]
    within = [(node.module.split(".")[1:], node.names) for node in nodes if (node.module or "").startswith("ssl_heads")]
    return {name for parts, names in within for name in (parts[:1] or [alias.name for alias in names])}


def test_no_module_imports_from_a_layer_above_its_own() -> None:
    package = ROOT / "ssl_heads"
    upwards = {}
    for path in set(package.glob("**/*.py")) - {package / "__init__.py"}:
        own = LAYER[path.relative_to(package).parts[0].removesuffix(".py")]
        upwards[path] = {name for name in imported(path) if LAYER[name] > own}
    assert {path: names for path, names in upwards.items() if names} == {}
