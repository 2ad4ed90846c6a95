"""Dimensions that a person kept: what a report exports, applied to embeddings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssl_heads.metrics._inputs import ArrayLike, as_tensor


class Selection(NamedTuple):
    """The result of `select`.

    Attributes:
        embeddings: Shape (..., k), the kept columns.
        dimensions: Shape (k,), which columns those were, ascending.
        names: Their names; empty where none was given.
    """

    embeddings: Tensor
    dimensions: Tensor
    names: tuple[str, ...]


def select(embeddings: ArrayLike, choices: str | Path | Mapping[str, Any]) -> Selection:
    """Keep the dimensions that were kept in a report.

    If some dimension is marked `keep`, those marked are kept and no other; else all but the dropped ones.

    Args:
        embeddings: Shape (..., d), of the same head as those of the report.
        choices: The JSON file that the report exports, its path or its content: `width`, and `dimensions`, a list of
            objects with `dimension`, and on request `name`, `note` and `verdict` (``"keep"`` or ``"drop"``).

    Raises:
        ValueError: If the file is none of a report, the widths differ, or nothing is left.

    Example:
        >>> choices = {"width": 3, "dimensions": [{"dimension": 2, "name": "wheels", "verdict": "keep"}]}
        >>> select(torch.eye(3), choices).names
        ('wheels',)
    """
    z = as_tensor("embeddings", embeddings)
    content = choices if isinstance(choices, Mapping) else _read(Path(choices))
    try:
        width, chosen = int(content["width"]), {int(row["dimension"]): row for row in content["dimensions"]}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"choices must be what a report exports, with width and dimensions; {error!r}") from error
    if z.ndim < 1 or z.shape[-1] != width:
        raise ValueError(f"choices are of {width} dimensions, got embeddings of shape {tuple(z.shape)}")
    verdicts = {j: row.get("verdict") for j, row in chosen.items()}
    unknown = [j for j in chosen if not 0 <= j < width] + [
        v for v in verdicts.values() if v not in (None, "keep", "drop")
    ]
    if unknown:
        raise ValueError(f"choices name dimensions 0..{width - 1} with verdict 'keep' or 'drop'; got {unknown[0]!r}")
    kept = [j for j, verdict in sorted(verdicts.items()) if verdict == "keep"]
    kept = kept or [j for j in range(width) if verdicts.get(j) != "drop"]
    if not kept:
        raise ValueError(f"choices drop all {width} dimensions: nothing is left")
    index = torch.tensor(kept, device=z.device)
    return Selection(z[..., index], index, tuple(str(chosen.get(j, {}).get("name") or "") for j in kept))


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
