"""Every Python block of the README and of docs/ runs, in order, each file in one namespace.

A block may be left out only for a package that is not installed, named in the comment before it:
`<!-- skip: needs open_clip -->`. A ```diff block is two programs, the lines before and the lines after: both run.
"""

from __future__ import annotations

import importlib.util
import pathlib
import re
from typing import NamedTuple

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
FENCE = re.compile(
    r"(?P<comment><!-- skip:[^\n]*-->\n+)?```(?P<kind>python|diff)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)
SKIP = re.compile(r"<!-- skip: needs (?P<package>\w+) -->\s*")


class Block(NamedTuple):
    kind: str
    code: str
    line: int
    package: str | None

    @property
    def runs(self) -> bool:
        return self.package is None or importlib.util.find_spec(self.package) is not None


def blocks(text: str) -> list[Block]:
    found = []
    for match in FENCE.finditer(text):
        package = None
        if match["comment"] is not None:
            skip = SKIP.fullmatch(match["comment"])
            assert skip, f"write `<!-- skip: needs PACKAGE -->`, not {match['comment'].strip()!r}"
            package = skip["package"]
        line = text.count("\n", 0, match.start("code"))
        found.append(Block(match["kind"], match["code"], line, package))
    return found


def side(diff: str, sign: str) -> str:
    """The program on one side of a diff, line numbers kept."""
    kept = {" ", sign}
    return "\n".join(line[1:] if line[:1] in kept else "" for line in diff.split("\n"))


def execute(page: pathlib.Path, code: str, line: int, namespace: dict[str, object]) -> None:
    exec(compile("\n" * line + code, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_runs(page: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": page.stem}
    for block in blocks(page.read_text(encoding="utf-8")):
        if not block.runs:
            continue
        if block.kind == "diff":
            execute(page, side(block.code, "-"), block.line, {"__name__": "before"})
            execute(page, side(block.code, "+"), block.line, namespace)
        else:
            execute(page, block.code, block.line, namespace)


def test_the_readme_opens_with_the_swap() -> None:
    opening = "\n".join((ROOT / "README.md").read_text(encoding="utf-8").split("\n")[:30])
    assert "pip install ssl-heads" in opening
    diffs = [block for block in blocks(opening) if block.kind == "diff"]
    assert len(diffs) == 1
    lines = diffs[0].code.split("\n")
    assert [sum(line.startswith(sign) for line in lines) for sign in "-+"] == [2, 2], "the swap is two changed lines"


def test_a_broken_block_is_found(tmp_path: pathlib.Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "text\n```python\nvalue = 1\n```\n<!-- skip: needs no_such_package -->\n```python\nvalue = 2\n```\n"
    )
    found = blocks(page.read_text())
    assert [(block.code, block.line, block.runs) for block in found] == [
        ("value = 1\n", 2, True),
        ("value = 2\n", 6, False),
    ]
    with pytest.raises(ZeroDivisionError):
        execute(page, "1 / 0", 0, {})


def test_a_skip_must_name_a_package() -> None:
    with pytest.raises(AssertionError, match="needs PACKAGE"):
        blocks("<!-- skip: slow -->\n```python\npass\n```\n")
