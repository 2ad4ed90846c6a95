"""One file: the template, its style and its module, and the data as deflated typed arrays."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import zlib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

TYPES = {
    torch.uint8: "Uint8Array",
    torch.int16: "Int16Array",
    torch.uint16: "Uint16Array",
    torch.int32: "Int32Array",
    torch.float32: "Float32Array",
}
SCRIPTS = ("codes.js", "views.js", "page.js")


def page(title: str, meta: Mapping[str, Any], arrays: Mapping[str, Tensor], sheets: list[bytes]) -> bytes:
    """The whole file. Its policy forbids every request, and every script and style but its own."""
    style, script = source("page.css"), "\n".join(source(name) for name in SCRIPTS)
    blocks = [block("meta", "json", json.dumps(meta, ensure_ascii=False, allow_nan=False).encode())]
    blocks += [block(name, *typed(array)) for name, array in arrays.items()]
    blocks += [f'<script type="text/plain" data-sheet="{i}">{_text(sheet)}</script>' for i, sheet in enumerate(sheets)]
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": policy,
        "title": html.escape(title),
        "style": style,
        "data": "\n".join(blocks),
        "script": script,
    }
    return re.sub(r"@(\w+)@", lambda mark: parts[mark[1]], source("page.html")).encode("utf-8")


def source(name: str) -> str:
    """A file of the template."""
    return files("ssl_heads.report").joinpath("template").joinpath(name).read_text(encoding="utf-8")


def typed(array: Tensor) -> tuple[str, bytes]:
    """The name of a typed array in JavaScript, and its bytes."""
    return TYPES[array.dtype], array.contiguous().numpy().tobytes()


def block(name: str, kind: str, content: bytes) -> str:
    """A script that does not run: base64 of deflated bytes."""
    compressor = zlib.compressobj(9, wbits=-15)
    text = _text(compressor.compress(content) + compressor.flush())
    return f'<script type="text/plain" data-name="{name}" data-type="{kind}">{text}</script>'


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _hash(text: str) -> str:
    return f"sha256-{_text(hashlib.sha256(text.encode('utf-8')).digest())}"
