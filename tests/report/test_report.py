"""What the file holds, and what is said about bad input; the page itself is opened in `test_page.py`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ssl_heads
from ssl_heads import metrics
from ssl_heads.metrics.controls import random_codes
from ssl_heads.report import command
from ssl_heads.report.codes import codes
from ssl_heads.report.summary import as_sparse
from ssl_heads.report.thumbnails import Source
from ssl_heads.report.twins import twins
from tests.report.pages import ANIMALS, SCALE, D, N, captions, contents, decoded, embedding, images


def test_the_codes_are_the_normalised_embedding(tmp_path: Path) -> None:
    z, y = embedding()
    ssl_heads.report(z, tmp_path / "page.html", labels=y)
    dense = decoded(contents(tmp_path / "page.html"))
    q = torch.nn.functional.normalize(z.double()).numpy()
    assert np.abs(dense / SCALE - q).max() <= 0.5 / SCALE + 1e-6


def test_signed_embeddings_keep_their_signs() -> None:
    z = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    made = codes(z, 1e9)
    assert made.counts.tolist() == [7] * 50
    assert torch.equal(made.values.reshape(50, 7) < 0, z < 0)


def test_a_budget_keeps_the_largest_entries_and_counts_the_rows() -> None:
    z, _ = embedding()
    made = codes(z, 4.41 * N * 2)
    assert made.most == 2
    assert made.truncated == int(((torch.nn.functional.normalize(z) * SCALE).round() != 0).sum(1).gt(2).sum())
    first = int(made.counts[0])
    assert set(made.dims[:first].tolist()) == set(z[0].topk(2).indices.tolist())


def test_the_table_in_the_page_is_that_of_dimensions(tmp_path: Path) -> None:
    z, y = embedding()
    made = ssl_heads.report(z, tmp_path / "page.html", labels=y, texts=captions())
    found = contents(tmp_path / "page.html")
    assert found["support"].tolist() == made.dimensions.support.tolist()
    assert np.allclose(found["share"], made.dimensions.share, equal_nan=True)
    assert found["strongest"].reshape(D, -1).tolist() == made.dimensions.strongest.tolist()
    assert found["meta"]["class_names"] == sorted(ANIMALS)
    assert found["meta"]["words"][0] == ["cat"]
    assert found["dead"].tolist() == [j == 3 for j in range(D)]


def test_twins_are_the_matching_of_the_metrics() -> None:
    z, _ = embedding()
    other = embedding(1)[0].flip(1)
    unit = torch.nn.functional.normalize
    pairs, matching = twins(z, other, 3, 1e-5), metrics.match_by_search(unit(other), unit(z))
    assert float(pairs.correlation.abs().sum()) == pytest.approx(float(matching.per_dimension.sum()), abs=1e-4)
    stability = metrics.seed_stability(unit(z), unit(other))
    assert torch.equal(pairs.match, stability.order)
    reversed_ = twins(z, -other, 3, 1e-5)
    torch.testing.assert_close(reversed_.correlation, -pairs.correlation)
    assert torch.equal(reversed_.strongest, pairs.strongest)
    assert pairs.match[[1, 2]].tolist() == [D - 2, D - 3]


def test_the_sentences_say_chance_and_controls(tmp_path: Path) -> None:
    z, y = embedding()
    made = ssl_heads.report(z, tmp_path / "page.html", labels=y, controls={"an untrained head": torch.rand(N, D)})
    text = " ".join(made.sentences)
    assert "240 samples, 10 dimensions: 9 fire on some sample, 1 on none." in text
    assert "(an untrained head " in text
    assert "Flagged dimensions: 1 always on, 1 repeating another." in text


def test_a_control_is_as_sparse_as_the_embeddings() -> None:
    w = torch.randn(N, D)
    kept = as_sparse(w, 2.6)
    assert (kept != 0).sum(dim=1).tolist() == (w > 0).sum(dim=1).clamp_max(3).tolist()
    assert torch.equal(kept.amax(dim=1), w.clamp_min(0).amax(dim=1))
    z, _ = embedding()
    shuffled = random_codes(z)
    assert torch.equal(shuffled.sort(dim=1).values, z.sort(dim=1).values)
    assert not torch.equal(shuffled, z)


def test_the_file_asks_for_nothing(tmp_path: Path) -> None:
    z, y = embedding()
    ssl_heads.report(z, tmp_path / "page.html", labels=y, images=images(), title="<script>alert(1)</script> & @data@")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?\s*(?:https?:|//)""", text) == []
    assert "default-src 'none'" in text
    assert "<script>alert" not in text


def test_files_and_arrays_give_the_same_thumbnails(tmp_path: Path) -> None:
    z, _ = embedding()
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(images()):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:04d}.png")
    pages = [tmp_path / "array.html", tmp_path / "folder.html"]
    for page, given in zip(pages, (images(), folder), strict=True):
        ssl_heads.report(z, page, images=given)
    sheets = [re.findall(r'data-sheet="\d+">([^<]*)<', page.read_text()) for page in pages]
    assert sheets[0] == sheets[1]
    assert len(sheets[0]) == 1
    assert sorted(contents(pages[0])["slot"].tolist()) == list(range(N))


def test_what_cannot_be_read_is_counted(tmp_path: Path) -> None:
    z, _ = embedding()
    paths = []
    for i, image in enumerate(images()):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(paths[-1])
    paths[3].write_bytes(b"no image")
    paths[5].unlink()
    made = ssl_heads.report(z, tmp_path / "page.html", images=paths)
    assert made.notices[0].startswith("2 images could not be read and appear as numbers: ")
    slot = contents(tmp_path / "page.html")["slot"]
    assert (slot == -1).nonzero()[0].tolist() == [3, 5]


def test_the_size_is_kept_and_what_is_left_out_is_counted(tmp_path: Path) -> None:
    z, y = embedding()
    noise = torch.randint(0, 255, (N, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    made = ssl_heads.report(z, tmp_path / "page.html", labels=y, images=noise, max_megabytes=0.3)
    assert (tmp_path / "page.html").stat().st_size <= 0.3e6
    slot = contents(tmp_path / "page.html")["slot"]
    left_out = int((slot < 0).sum())
    assert 0 < left_out < N
    assert made.notices[-1] == f"{left_out} of 240 samples appear as numbers, for want of space for their images."
    strongest = made.dimensions.strongest[:, 0]
    assert (slot[strongest[strongest >= 0]] >= 0).all()


@pytest.mark.parametrize(
    ("z", "labels"),
    [
        (torch.zeros(6, 4), [0, 1] * 3),
        (torch.rand(3, 4), ["a", "b", "c"]),
        (torch.rand(6, 4), [2] * 6),
        (torch.rand(1, 1), None),
    ],
    ids=["all dead", "three samples", "one class", "one number"],
)
def test_odd_data_make_a_page(z: torch.Tensor, labels: Any, tmp_path: Path) -> None:
    made = ssl_heads.report(z, tmp_path / "page.html", labels=labels, other_seed=z if len(z) > 1 else None)
    contents(tmp_path / "page.html")
    text = " ".join(made.sentences)
    assert "nan" not in text.lower()
    assert ("All labels are of one class" in text) == (labels == [2] * 6)


def give(**given: Any) -> Callable[[Path], object]:
    return lambda folder: ssl_heads.report(embedding()[0], folder / "page.html", **given)


MISTAKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "nan": (lambda folder: ssl_heads.report([[math.nan]], folder / "p.html"), "1 of 1 rows of embeddings hold NaN"),
    "labels": (give(labels=[0, 1]), r"expected labels \(240,\)"),
    "texts": (give(texts=["a"]), "one text for each of the 240 rows of embeddings, got 1"),
    "images": (give(images=images()[:5]), "one for each of the 240 rows of embeddings, got 5"),
    "normalised": (give(images=torch.randn(N, 3, 8, 8)), "undo a normalisation first"),
    "no folder": (give(images="nowhere"), "nowhere is no folder"),
    "empty folder": (lambda folder: give(images=folder)(folder), "holds 0 images and embeddings 240 rows"),
    "paths": (give(images=["a.png"]), "one file for each of the 240 rows of embeddings, got 1"),
    "none readable": (give(images=["a.png"] * N), "none of the 240 images that were opened could be read"),
    "seed": (give(other_seed=torch.rand(3, 4)), "the same samples as embeddings, row by row; got 3 and 240"),
    "control": (give(controls={"it": torch.rand(3, 4)}), "the control 'it' must hold the 240 rows"),
    "size": (give(max_megabytes=0.02, texts=captions()), "more than max_megabytes=0.02"),
    "no size": (give(max_megabytes=0), "max_megabytes must be a finite number above 0"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_said_plainly(mistake: str, tmp_path: Path) -> None:
    call, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        call(tmp_path)


def test_photographs_stand_upright_and_drawings_lie_on_white(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.new("RGB", (8, 4), "red").save(tmp_path / "a.jpg", exif=exif)
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "b.png")
    photograph, drawing = Source(tmp_path, 2).open([0, 1])
    assert photograph.size == (4, 8)
    assert drawing.getpixel((0, 0)) == (255, 255, 255)


def test_an_ambiguous_order_of_files_is_refused(tmp_path: Path) -> None:
    for i in range(11):
        Image.new("L", (4, 4)).save(tmp_path / f"{i}.png")
    with pytest.raises(ValueError, match=r"ambiguous: 10.png or 2.png may be image 2"):
        ssl_heads.report(torch.rand(11, 4), tmp_path / "page.html", images=tmp_path)


# ------------------------------------------------------------------------------------------------ the command line
def test_the_command_line_takes_arrays_files_and_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    z, y = embedding()
    np.savez(tmp_path / "a.npz", embeddings=z.numpy(), images=images().numpy())
    np.save(tmp_path / "b.npy", embedding(1)[0].numpy())
    (tmp_path / "labels.txt").write_text("\n".join(y))
    (tmp_path / "texts.txt").write_text("\n".join(captions()))
    page = tmp_path / "page.html"
    options = ["-o", page, "--labels", tmp_path / "labels.txt", "--texts", tmp_path / "texts.txt"]
    options += ["--other-seed", tmp_path / "b.npy", "--control", f"noise={tmp_path / 'b.npy'}", "--title", "Animals"]
    command.main(["report", str(tmp_path / "a.npz"), *map(str, options)])
    assert "page.html: 0." in capsys.readouterr().out
    found = contents(page)
    assert found["meta"]["title"] == "Animals"
    assert [r["name"] for r in found["meta"]["rows"]] == ["these embeddings", "noise", "random codes"]
    assert found["meta"]["texts"] == captions()
    assert {"twin", "slot", "label"} <= set(found)


COMMANDS = {
    "missing": (["nowhere.npz"], "nowhere.npz does not exist"),
    "broken": (["broken.npz"], "broken.npz cannot be read as npz, npy or pt"),
    "other": (["other.npz"], "must hold the array `embeddings`; it holds x"),
    "control": (["good.npy", "--control", "noise"], "--control takes NAME=FILE"),
    "labels": (["good.npy", "--labels", "three.txt"], r"expected labels (4,)"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_mistake_on_the_command_line_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.npz").write_bytes(b"PK")
    np.savez("other.npz", x=np.eye(3))
    np.save("good.npy", np.eye(4))
    Path("three.txt").write_text("0\n1\n2")
    arguments, message = COMMANDS[name]
    with pytest.raises(SystemExit) as ended:
        command.main(["report", *arguments])
    assert str(ended.value).startswith("error: ")
    assert message in str(ended.value)
    assert "\n" not in str(ended.value)


# ------------------------------------------------------------------------------------------------------- selection
def test_select_keeps_what_was_kept(tmp_path: Path) -> None:
    z, _ = embedding()
    chosen = {
        "width": D,
        "dimensions": [{"dimension": 7, "name": "x", "verdict": "keep"}, {"dimension": 2, "verdict": "keep"}],
    }
    (tmp_path / "dimensions.json").write_text(json.dumps(chosen))
    kept = ssl_heads.select(z, tmp_path / "dimensions.json")
    assert torch.equal(kept.embeddings, z[:, [2, 7]])
    assert kept.names == ("", "x")
    dropped = ssl_heads.select(
        z, {"width": D, "dimensions": [{"dimension": 7, "verdict": "drop"}, {"dimension": 1, "name": "y"}]}
    )
    assert dropped.dimensions.tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    assert dropped.names[1] == "y"


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({}, "must be what a report exports"),
        ({"width": 3, "dimensions": []}, "choices are of 3 dimensions, got embeddings of shape"),
        ({"width": D, "dimensions": [{"dimension": 10}]}, "name dimensions 0..9"),
        ({"width": D, "dimensions": [{"dimension": 1, "verdict": "maybe"}]}, "'keep' or 'drop'; got 'maybe'"),
        ({"width": D, "dimensions": [{"dimension": j, "verdict": "drop"} for j in range(D)]}, "drop all 10 dimensions"),
        ("nowhere.json", "nowhere.json cannot be read as JSON"),
    ],
)
def test_select_refuses_other_files(choices: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ssl_heads.select(embedding()[0], choices)
