"""The report: a table of dimensions, the samples, and answers to questions about both, in a file of a given size."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssl_heads._check import positive
from ssl_heads.dimensions import Dimensions, as_classes_and_names, dimensions
from ssl_heads.metrics._inputs import ArrayLike, as_matrix, refuse_rows_that_are_not_finite, whole
from ssl_heads.metrics._rows import EPS
from ssl_heads.metrics.controls import random_codes
from ssl_heads.report.codes import codes
from ssl_heads.report.content import about, code_arrays, notices, table_arrays, wanted
from ssl_heads.report.page import page
from ssl_heads.report.summary import Row, as_sparse, row
from ssl_heads.report.thumbnails import COLUMNS, Source, thumbnails
from ssl_heads.report.twins import twins

SHARE_OF_CODES = 0.6  # of the bytes, where there are images too
RESERVE = 50_000  # bytes of the notices and of the elements around sheets, at most
BASE64 = 4 / 3


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
        controls: Embeddings of the same rows to compare with, by name, for instance of an untrained head. Of each row
            the largest positive entries are kept, as many as are active in `embeddings` on average. Random codes are
            always among the controls.
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
    most = float(positive("max_megabytes", max_megabytes)) * 1e6
    side = whole("thumbnail", thumbnail, least=8)
    z = as_matrix("embeddings", embeddings)
    if z.shape[1] > 2**16:
        raise ValueError(f"a report holds at most {2**16} dimensions, got {z.shape[1]}")
    pictures = None if images is None else Source(images, len(z))
    table = dimensions(z, labels, texts, class_names=class_names, importance=importance, eps=eps)
    pairs = None if other_seed is None else twins(z, other_seed, table.strongest.shape[1], eps)
    mine = row("these embeddings", table)
    rows = [mine, *_controls(z, controls or {}, mine.active, labels, class_names, eps)]
    y, _, _ = as_classes_and_names(labels, class_names, z)

    meta, arrays = about(title, table, rows, pairs, texts), table_arrays(table, y, pairs)
    room = most - RESERVE - len(page(title, meta, arrays, []))
    if room <= 0:
        raise ValueError(f"without any sample the page takes more than max_megabytes={max_megabytes:g}")
    sparse = codes(z, room * (SHARE_OF_CODES if pictures else 1.0))
    arrays |= code_arrays(sparse)
    meta["digest"] = zlib.crc32(sparse.values.numpy().tobytes())
    small = None
    if pictures:
        # in a random order the places of thumbnails take the most bytes
        arrays["slot"] = torch.randperm(len(z), generator=torch.Generator("cpu").manual_seed(0), device="cpu").int()
        room = (most - RESERVE - len(page(title, meta, arrays, []))) / BASE64
        small = thumbnails(pictures, wanted(table, pairs), len(z), side, room)
        arrays["slot"] = small.slot.int()
        meta["sheets"] = {"side": small.side, "columns": COLUMNS, "rows": small.rows}
    meta["notices"] = notices(sparse, small, len(z))
    content = page(title, meta, arrays, small.sheets if small else [])
    path = Path(path)
    path.write_bytes(content)
    return Report(path, len(content) / 1e6, meta["sentences"], meta["notices"], table)


def _controls(
    z: Tensor,
    controls: Mapping[str, ArrayLike],
    active: float,
    labels: ArrayLike | None,
    class_names: Sequence[str] | Mapping[int, str] | None,
    eps: float,
) -> Iterator[Row]:
    """A row for each control, made as sparse as the embeddings, and one for random codes."""
    named = {name: as_matrix(name, other) for name, other in controls.items()}
    for name, w in named.items():
        if len(w) != len(z):
            raise ValueError(f"the control {name!r} must hold the {len(z)} rows of embeddings, got {len(w)}")
        refuse_rows_that_are_not_finite(name, w)
    for name in (*named, "random codes"):
        w = as_sparse(named[name], active) if name in named else random_codes(z.cpu())
        table = dimensions(
            w,
            labels,
            class_names=class_names,
            num_strongest=0,
            num_spread=0,
            num_near_misses=0,
            num_nearest=0,
            num_words=0,
            eps=eps,
        )
        yield row(name, table)
