"""Tables, and where they stand in a page of docs/."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def between(text: str, begin: str, end: str, content: str) -> str:
    """The text with what stands between two marks replaced."""
    before, mark, rest = text.partition(begin)
    _, other, after = rest.partition(end)
    if not mark or not other:
        raise ValueError(f"the page has no {begin} with {end} after it")
    return f"{before}{begin}{content}{end}{after}"
