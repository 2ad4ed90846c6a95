"""A small embedding whose dimensions are known, with images, names, captions and a second seed."""

from __future__ import annotations

import base64
import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

N, D, SCALE = 240, 10, 32767
ANIMALS = ("cat", "dog", "owl")


def embedding(seed: int = 0) -> tuple[Tensor, list[str]]:
    """Dimensions 0 to 2 follow the class, 3 is dead, 4 always on, 5 repeats 0, the others are noise."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(N) % 3
    z = torch.rand(N, D, generator=generator) * (torch.rand(N, D, generator=generator) < 0.25)
    for c in range(3):
        z[:, c] = torch.where(y == c, 1 + torch.rand(N, generator=generator), 0.0)
    z[::20, 0] += 0.3
    z[:, 3], z[:, 4], z[:, 5] = 0, 0.1, z[:, 0] * 1.01
    return z, [ANIMALS[c] for c in y]


def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(N, 3, 24, 24, generator=generator) * 255).byte()


def captions() -> list[str]:
    return [f"a photo of one {ANIMALS[i % 3]} number {i}" for i in range(N)]


def contents(path: Path) -> dict[str, Any]:
    """The blocks of a page, as NumPy and JSON."""
    kinds = {"Uint8Array": np.uint8, "Int16Array": np.int16, "Uint16Array": np.uint16, "Int32Array": np.int32}
    kinds["Float32Array"] = np.float32
    found: dict[str, Any] = {}
    pattern = r'<script type="text/plain" data-name="(\w+)" data-type="(\w+)">([^<]*)</script>'
    for name, kind, text in re.findall(pattern, path.read_text(encoding="utf-8")):
        content = zlib.decompress(base64.b64decode(text), wbits=-15)
        found[name] = json.loads(content) if kind == "json" else np.frombuffer(content, kinds[kind])
    return found


def decoded(found: dict[str, Any]) -> np.ndarray:
    """The integers of the codes as a dense float64 matrix."""
    counts = found["code_counts"]
    dense = np.zeros((len(counts), found["meta"]["width"]))
    dense[np.repeat(np.arange(len(counts)), counts), found["code_dims"]] = found["code_values"]
    return dense


def neighbours(dense: np.ndarray, i: int, count: int, off: tuple[int, ...] = ()) -> tuple[list[int], list[float]]:
    """Literal: zero the columns, take cosines, leave out row i, of equal ones the first."""
    z = dense.copy()
    z[:, list(off)] = 0
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = np.nan_to_num(z @ z[i] / np.sqrt((z * z).sum(1) * (z[i] @ z[i])))
    cosine[i] = -1
    order = np.argsort(-cosine, kind="stable")[:count]
    return order.tolist(), cosine[order].tolist()
