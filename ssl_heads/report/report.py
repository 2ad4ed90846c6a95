"""The report: a table of dimensions, the samples, and what a page needs to answer questions about both."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssl_heads._check import positive
from ssl_heads.dimensions import Dimensions, as_classes_and_names, dimensions
from ssl_heads.metrics._inputs import ArrayLike, as_matrix, whole
from ssl_heads.metrics._rows import EPS
from ssl_heads.report.codes import Codes, codes
from ssl_heads.report.page import page
from ssl_heads.report.summary import Row, random_codes, row, sentences
from ssl_heads.report.thumbnails import COLUMNS, Source, Thumbnails, thumbnails
from ssl_heads.report.twins import SAME, Twins, twins

LONGEST_TEXT = 200
SHARE_OF_CODES = 0.6  # of the bytes, where there are images too
TEMPLATE = 120_000  # bytes of the template, its style and its module, at most
BASE64 = 4 / 3
SMALLER = {torch.int64: torch.int32, torch.bool: torch.uint8}  # all else is float32


class Report(NamedTuple):
    """The result of `report`.

    Attributes:
        path: The file.
        megabytes: Its size.
        sentences: The summary, as the page shows it.
        notices: What was left out or could not be read, as the page shows it.
        dimensions: The table behind the page.
    """

    path: Path
    megabytes: float
    sentences: list[str]
    notices: list[str]
    dimensions: Dimensions


@torch.no_grad()
def report(
    embeddings: ArrayLike,
    path: str | Path,
    *,
    images: Any = None,
    labels: ArrayLike | None = None,
    texts: Sequence[str] | None = None,
    class_names: Sequence[str] | Mapping[int, str] | None = None,
    importance: ArrayLike | None = None,
    other_seed: ArrayLike | None = None,
    controls: Mapping[str, ArrayLike] | None = None,
    title: str = "What the dimensions mean",
    max_megabytes: float = 25.0,
    thumbnail: int = 64,
    eps: float = EPS,
) -> Report:
    r"""Write one HTML file that shows each dimension's samples and answers questions about them.

    The file loads nothing and asks no server. It has the table of `ssl_heads.dimensions`, and computes in the page: why
    two samples are similar, :math:`z_j z'_j` for each dimension; the neighbours of a sample with dimensions switched
    off; what a sample is made of. Names and verdicts given there are exported as JSON for `ssl_heads.select`.

    Args:
        embeddings: Shape (n, d), signed or not; rows are normalised here.
        path: The file to write.
        images: A folder with as many images as rows, in the order of their names; or one path a row; or an array as
            `ssl_heads.plots.top_activating` takes it.
        labels: Shape (n,), classes 0, 1, ..., -1 for none, or one name a row.
        texts: One text a row, for instance its caption.
        class_names: Names of the classes.
        importance: Shape (d,), for instance of `ssl_heads.FeatureImportance`.
        other_seed: Shape (n, e), embeddings of the same rows by the same training from another seed. Needs scipy.
        controls: Embeddings of the same rows to compare with, by name, for instance of an untrained head; random codes
            are always among them.
        title: The heading.
        max_megabytes: Size of the file at most. Samples without a thumbnail, and rows cut to their largest entries,
            are counted in `notices` and on the page.
        thumbnail: Width and height of a thumbnail at most.
        eps: A normalised entry above it is an activation.

    Raises:
        ValueError: If lengths differ, a row holds NaN or infinity, images are in no range that is known or none can be
            read, or the size is too small for the data.
        ImportError: If Pillow is missing and images are given, or scipy and another seed.

    Example:
        >>> import pathlib, tempfile
        >>> z = torch.rand(100, 16).relu()
        >>> made = report(z, pathlib.Path(tempfile.mkdtemp()) / "report.html", labels=torch.arange(100) % 4)
        >>> made.notices
        []
    """
    budget = float(positive("max_megabytes", max_megabytes)) * 1e6 - TEMPLATE
    side = whole("thumbnail", thumbnail, least=8)
    z = as_matrix("embeddings", embeddings)
    if z.shape[1] > 2**16:
        raise ValueError(f"a report holds at most {2**16} dimensions, got {z.shape[1]}")
    pictures = None if images is None else Source(images, len(z))
    table = dimensions(z, labels, texts, class_names=class_names, importance=importance, eps=eps)
    pairs = None if other_seed is None else twins(z, other_seed, table.strongest.shape[1], eps)
    rows = [row("these embeddings", table), *_controls(z, controls, labels, class_names, eps)]
    y, _, _ = as_classes_and_names(labels, class_names, z)

    sparse = codes(z, budget * (SHARE_OF_CODES if pictures else 1.0) - _text_bytes(texts))
    arrays = _arrays(table, sparse, y, pairs)
    small = None
    if pictures:
        spent = len(page("", {}, arrays, [])) - len(page("", {}, {}, [])) + _text_bytes(texts)
        small = thumbnails(pictures, _wanted(table, pairs), len(z), side, (budget - spent) / BASE64)
        arrays["slot"] = small.slot.int()
    said, notices = sentences(table, rows, pairs), _notices(sparse, small, len(z))
    meta = _meta(table, rows, pairs, texts, small) | {"title": title, "sentences": said, "notices": notices}
    meta["digest"] = zlib.crc32(sparse.values.numpy().tobytes())
    content = page(title, meta, arrays, small.sheets if small else [])
    if len(content) > max_megabytes * 1e6:
        raise ValueError(f"the page takes {len(content) / 1e6:.1f} MB, more than max_megabytes={max_megabytes:g}")
    path = Path(path)
    path.write_bytes(content)
    return Report(path, len(content) / 1e6, said, notices, table)


def _controls(
    z: Tensor,
    controls: Mapping[str, ArrayLike] | None,
    labels: ArrayLike | None,
    class_names: Sequence[str] | Mapping[int, str] | None,
    eps: float,
) -> Iterator[Row]:
    """A row for each control, and one for random codes."""
    named: dict[str, ArrayLike] = {**(controls or {}), "random codes": random_codes(z)}
    for name, other in named.items():
        w = as_matrix(name, other)
        if len(w) != len(z):
            raise ValueError(f"the control {name!r} must hold the {len(z)} rows of embeddings, got {len(w)}")
        yield row(
            name,
            dimensions(
                w,
                labels,
                class_names=class_names,
                num_strongest=0,
                num_spread=0,
                num_near_misses=0,
                num_nearest=0,
                num_words=0,
                eps=eps,
            ),
        )


def _arrays(table: Dimensions, sparse: Codes, y: Tensor, pairs: Twins | None) -> dict[str, Tensor]:
    """What the page reads, under the names that it uses."""
    arrays = {
        name: value.int()
        if value.dtype == torch.int64
        else value.byte()
        if value.dtype == torch.bool
        else value.float()
        for name, value in table._asdict().items()
        if isinstance(value, Tensor) and name != "classes"
    }
    modal = torch.searchsorted(table.classes, table.modal_class).where(table.modal_class >= 0, -1)
    arrays |= {
        "modal_class": modal.int(),
        "label": y.int(),
        "code_counts": sparse.counts.to(torch.int32),
        "code_dims": sparse.dims.to(torch.int32).to(torch.uint16),
        "code_values": sparse.values,
    }
    if pairs is not None:
        twin = {"twin": pairs.match.int(), "twin_correlation": pairs.correlation.float()}
        arrays |= twin | {"twin_strongest": pairs.strongest.int()}
    return arrays


def _wanted(table: Dimensions, pairs: Twins | None) -> Iterable[int]:
    """The samples by how soon a reader sees them: the strongest of every dimension first, all others last."""
    groups = [table.strongest, table.spread, table.near_misses, *([pairs.strongest] if pairs is not None else [])]
    order = table.order()
    for group in groups:
        for rank in group[order].T:
            yield from rank.tolist()
    yield from range(table.samples)


def _notices(sparse: Codes, small: Thumbnails | None, count: int) -> list[str]:
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


def _text_bytes(texts: Sequence[str] | None) -> float:
    return 0.0 if texts is None else BASE64 * sum(min(len(text.encode()), 4 * LONGEST_TEXT) for text in texts)


def _meta(
    table: Dimensions, rows: list[Row], pairs: Twins | None, texts: Sequence[str] | None, small: Thumbnails | None
) -> dict[str, Any]:
    """What is no array."""
    numbers = [
        {name: None if isinstance(v, float) and math.isnan(v) else v for name, v in r._asdict().items()} for r in rows
    ]
    return {
        "samples": table.samples,
        "width": len(table.support),
        "class_names": table.class_names,
        "words": table.words,
        "texts": None if texts is None else [text[:LONGEST_TEXT] for text in texts],
        "rows": numbers,
        "twin": None if pairs is None else {"same": SAME, "by_chance": pairs.by_chance},
        "sheets": None if small is None else {"side": small.side, "columns": COLUMNS, "rows": small.rows},
    }
