"""What the page reads, under the names that it uses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ssl_heads.dimensions import Dimensions
from ssl_heads.report.codes import Codes
from ssl_heads.report.summary import Row, sentences
from ssl_heads.report.thumbnails import Thumbnails
from ssl_heads.report.twins import SAME, Twins

LONGEST_TEXT = 200
SMALLER = {torch.int64: torch.int32, torch.bool: torch.uint8}  # all else is float32


def table_arrays(table: Dimensions, y: Tensor, pairs: Twins | None) -> dict[str, Tensor]:
    """The table, the classes of the samples, and the partners of the other seed."""
    columns = {
        name: value for name, value in table._asdict().items() if isinstance(value, Tensor) and name != "classes"
    }
    arrays = {name: value.to(SMALLER.get(value.dtype, torch.float32)) for name, value in columns.items()}
    modal = torch.searchsorted(table.classes, table.modal_class).where(table.modal_class >= 0, -1)
    arrays |= {"modal_class": modal.int(), "label": y.int()}
    if pairs is not None:
        twin = {"twin": pairs.match.int(), "twin_correlation": pairs.correlation.float()}
        arrays |= twin | {"twin_strongest": pairs.strongest.int()}
    return arrays


def code_arrays(sparse: Codes) -> dict[str, Tensor]:
    """The codes of the samples."""
    return {
        "code_counts": sparse.counts.int(),
        "code_dims": sparse.dims.int().to(torch.uint16),
        "code_values": sparse.values,
    }


def about(
    title: str, table: Dimensions, rows: list[Row], pairs: Twins | None, texts: Sequence[str] | None
) -> dict[str, Any]:
    """What is no array."""
    numbers = [
        {name: None if isinstance(v, float) and math.isnan(v) else v for name, v in r._asdict().items()} for r in rows
    ]
    return {
        "title": title,
        "sentences": sentences(table, rows, pairs),
        "notices": [],
        "samples": table.samples,
        "width": len(table.support),
        "class_names": table.class_names,
        "words": table.words,
        "texts": None if texts is None else [text[:LONGEST_TEXT] for text in texts],
        "rows": numbers,
        "twin": None if pairs is None else {"same": SAME, "by_chance": pairs.by_chance},
        "sheets": None,
    }


def wanted(table: Dimensions, pairs: Twins | None) -> Iterable[int]:
    """The samples by how soon a reader sees them: the strongest of every dimension first, all others last."""
    groups = [table.strongest, table.spread, table.near_misses, *([pairs.strongest] if pairs is not None else [])]
    order = table.order()
    for group in groups:
        for rank in group[order].T:
            yield from rank.tolist()
    yield from range(table.samples)


def notices(sparse: Codes, small: Thumbnails | None, count: int) -> list[str]:
    """What is not whole, with numbers."""
    said = []
    if sparse.truncated:
        said.append(
            f"{sparse.truncated:,} of {count:,} samples have more than {sparse.most} active dimensions; for them "
            f"similarities use the {sparse.most} largest. The table of dimensions uses all."
        )
    if small is not None and small.unreadable:
        shown = ", ".join(small.unreadable[:3])
        said.append(f"{len(small.unreadable):,} images could not be read and appear as numbers: {shown}.")
    if small is not None and small.left_out:
        said.append(f"{small.left_out:,} of {count:,} samples appear as numbers, for want of space for their images.")
    return said
