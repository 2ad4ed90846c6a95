"""Examples import each other as scripts do, from their own folder."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the emoji are kept, drawn once for all examples."""
    return tmp_path_factory.mktemp("openmoji")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory: what the example keeps lands in its runs/."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("clip"))
    yield Path.cwd()
    os.chdir(before)


@pytest.fixture(scope="module")
def own(here: Path) -> Path:
    """Forty coloured squares in two groups, as a folder, a CSV and two WebDataset shards; one image is broken."""
    import webdataset

    folder, rows, samples = here / "own", [], []
    for i in range(40):
        shade, group = f"{i:02}", "warm" if i % 2 else "cold"
        (folder / group).mkdir(parents=True, exist_ok=True)
        path = folder / group / f"{shade}.png"
        colour = (255, 6 * i, 0) if i % 2 else (0, 6 * i, 255)
        Image.new("RGB", (40, 30), colour).save(path)
        if i == 6:
            path.write_bytes(path.read_bytes()[:60])
        caption = f"a {group} colour number {shade}"
        path.with_suffix(".txt").write_text(caption)
        rows.append({"image": str(path.relative_to(here)), "caption": caption, "group": group})
        samples.append({"__key__": shade, "png": path.read_bytes(), "json": json.dumps(rows[-1]).encode()})
    with (here / "own.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["image", "caption", "group"])
        writer.writeheader()
        writer.writerows(rows)
    for k in range(2):
        with webdataset.TarWriter(str(here / f"own-{k}.tar")) as tar:
            for sample in samples[20 * k :][:20]:
                tar.write(sample)
    config = {"model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
    }, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}  # fmt: skip
    residual = json.loads(json.dumps(config))
    residual["model_cfg"]["vision_cfg"] = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}
    for name, content in (("tiny", config), ("residual", residual)):
        (here / name).mkdir()
        (here / name / "open_clip_config.json").write_text(json.dumps(content))
    return here
