"""The CLIP page shows the runs that are recorded, and choices were made without the held-out concepts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
for package in ("torchvision", "tqdm", "PIL"):
    pytest.importorskip(package)
sys.path.insert(0, str(ROOT / "benchmarks"))
import clip  # noqa: E402
from records import Records  # noqa: E402

RECORDS = Records(ROOT / "benchmarks" / "records" / "clip.csv", clip.Cell._fields)


@pytest.mark.parametrize("make", [clip.table, clip.choices])
def test_the_page_shows_what_is_recorded(make) -> None:
    assert make(RECORDS) in (ROOT / "docs" / "clip.md").read_text(encoding="utf-8")


def test_every_cell_of_the_grid_is_recorded_once() -> None:
    cells = [tuple(map(str, cell)) for cell in clip.grid(RECORDS, clip.SEEDS)]
    recorded = [tuple(row[name] for name in clip.Cell._fields) for row in RECORDS.rows()]
    assert sorted(cells) == sorted(recorded)
    assert len([cell for cell in cells if cell[0] == "test"]) == 1 + 3 * 4


def test_the_defaults_of_the_example_are_the_choices() -> None:
    for arm, kind in clip.clip_finetune.ARMS.items():
        loss, temperature, dropout = clip.best(RECORDS, arm)
        defaults = clip.clip_finetune.parse([])
        assert (temperature, dropout) == (kind.start[1], defaults.dropout)
        if arm == "trifactor":
            assert clip.DECORRELATION[loss] == defaults.decorrelation
        else:
            assert loss == kind.start[0]


def test_validation_concepts_are_training_concepts() -> None:
    pairs = [clip.clip_data.Pair("", "", lambda: None, str(i), f"concept {i % 50}", "") for i in range(200)]

    class Outer:
        train, test = clip.clip_data.hold_out(pairs, 0.2, seed=0)

    Outer.pairs, Outer.streamed, Outer.source = pairs, None, None
    judge = clip.inner(Outer)
    held_out = {pairs[i].concept for i in Outer.test}
    assert not held_out & {pairs[i].concept for i in [*judge.train, *judge.test]}
    assert not {pairs[i].concept for i in judge.train} & {pairs[i].concept for i in judge.test}
    assert len(judge.test) == 8
