"""The distributed examples on two ranks, each with a disk of its own."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("torchvision")

from PIL import Image

from tests.distributed.pool import Pool
from tests.examples import ranks


@pytest.fixture
def two(pool: Callable[[int], Pool]) -> Pool:
    return pool(2)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    for rank in range(2):
        (tmp_path / f"rank{rank}").mkdir()
    return [tmp_path / f"rank{rank}" for rank in range(2)]


def test_a_checkpoint_on_the_disk_of_rank_0_continues_on_all(two: Pool, folders: list[Path], tmp_path: Path) -> None:
    options = ["--steps", "3", "--batch-size", "16", "--save-every", "1"]
    through = two.run(ranks.train, [tmp_path / "other", tmp_path / "other"], 17, options)
    two.run(ranks.train, folders, 17, [*options, "--stop-after", "2"])
    assert [len(list(folder.iterdir())) for folder in folders] == [1, 0]
    resumed = two.run(ranks.train, folders, 17, options)
    for parameters in (*resumed, *through[1:]):
        assert all(torch.equal(p, q) for p, q in zip(parameters, through[0], strict=True))


def refusals(two: Pool, *task: object) -> list[str]:
    """The last line of every rank's traceback."""
    outcomes = two.outcomes(*task)
    assert not any(good for good, _ in outcomes), "a rank went on alone"
    return [text.strip().splitlines()[-1] for _, text in outcomes]


def test_a_checkpoint_that_rank_0_cannot_take_is_refused_on_all(two: Pool, folders: list[Path]) -> None:
    options = ["--steps", "1", "--batch-size", "16"]
    two.run(ranks.train, folders, 17, options)
    for why in refusals(two, ranks.train, folders, 17, [*options, "--lr", "1", "--temperature", "0.5"]):
        assert "with 'lr': 0.002, not with 'lr': 1.0; with 'temperature': 0.2, not with 'temperature': 0.5" in why
    for content in (b"", b"no checkpoint"):
        (folders[0] / "run.pt").write_bytes(content)
        for why in refusals(two, ranks.train, folders, 17, options):
            assert re.search(r"rank0.run\.pt is broken or no file of this example", why)


def test_data_that_one_rank_has_not_is_refused_on_all(two: Pool, folders: list[Path]) -> None:
    for name in "ab":
        for i in range(10):
            path = folders[0] / name / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("L", (8, 8), 10 * i).save(path)
    options = ["--batch-size", "8"]
    for why in refusals(two, ranks.load, folders, options):
        assert re.search(r"rank 1: expected images in .*rank1", why)
    assert two.run(ranks.load, [folders[0], folders[0]], options) == [None, None]
    for why in refusals(two, ranks.load, [folders[0], folders[0]], ["--batch-size", "3"]):
        assert "--batch-size 3 makes batches of 2 of 16 images; 2 processes need 4, two each" in why
    for i in range(14):
        path = folders[1] / f"{i // 7}" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8), 10 * i).save(path)
    for why in refusals(two, ranks.load, folders, options):
        assert "the ranks were started with other options or data: [16, 12]" in why
