"""The CLIP example on pairs of your own, with a small open_clip model from disk; one image is broken."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import clip_data
import clip_finetune
import clip_inputs
import clip_towers
import pytest
import torch
from PIL import Image
from torch import nn

from tests.examples.clip_runs import OWN, TINY, table


@pytest.mark.parametrize("kind", OWN)
def test_the_three_layouts_hold_the_same_pairs(own: Path, kind: str):
    pairs = sorted(clip_data.load(OWN[kind], 32, None), key=lambda pair: pair.caption)
    assert [p.caption for p in pairs] == sorted(
        f"a {'warm' if i % 2 else 'cold'} colour number {i:02}" for i in range(40)
    )
    assert all(p.group in p.caption for p in pairs)
    assert all(p.concept == p.caption for p in pairs)
    red, green, blue = clip_inputs.square(pairs[-1].read(), 32)[:, 16, 16].tolist()
    assert (red, green, blue) == (255, 6 * 39, 0)


def test_a_byte_order_mark_is_no_part_of_a_name_or_a_caption(own: Path):
    (own / "marked.csv").write_text("image,caption\nx.png,a cat\n", encoding="utf-8-sig")
    assert [pair.caption for pair in clip_data.load("csv:marked.csv", 32, None)] == ["a cat"]


def test_sixteen_bits_a_pixel_are_not_cut_off():
    grey = clip_inputs.square(Image.new("I;16", (4, 4), 30000), 4)
    assert grey.shape == (3, 4, 4)
    assert 110 < int(grey.min()) == int(grey.max()) < 125


def test_the_batch_is_refused_before_a_tower_runs(own: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(clip_inputs, "stems", lambda *_: pytest.fail("the towers ran"))
    with pytest.raises(SystemExit, match="--batch-size must lie between 2 and the 32 training concepts, got 33"):
        clip_finetune.main([*TINY, "--data", "csv:own.csv", "--batch-size", "33", "--device", "cpu"])


def test_captions_that_are_cut_are_counted_once(own: Path, capsys: pytest.CaptureFixture[str]):
    fits, longer, lines = (
        "a " * 14,
        "a " * 15,
        "\n".join(f"line {i}" for i in range(65)),
    )  # 16 tokens, two of them marks
    with (own / "long.csv").open("w", newline="") as file:
        texts = [fits, longer, lines, *(f"colour {i}" for i in range(10))]
        csv.writer(file).writerows(
            [("filepath", "title"), *((f"own/warm/{1 + 2 * i:02}.png", t) for i, t in enumerate(texts))]
        )
    options = [*TINY, "--data", "csv:long.csv", "--batch-size", "4", "--arms", "trifactor", "--device", "cpu"]
    clip_finetune.prepare(clip_finetune.parse(options))
    said = capsys.readouterr().err
    assert said.count("2 of 13 captions are longer than the 16 tokens that are read\n") == said.count("captions") == 1
    towers = clip_towers.from_packages(0, 0, 64)
    assert towers.cut([fits, lines, "word " * 62, "word " * 63]) == 2, "64 tokens, two of them marks"


def test_a_temperature_that_is_clamped_is_said(
    own: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    options = [*TINY, "--data", "csv:own.csv", "--batch-size", "16", "--epochs", "1", "--device", "cpu"]
    args = clip_finetune.parse([*options, "--arms", "signed", "--temperature", "0.001"])
    judge, towers, plan, checkpoint = clip_finetune.prepare(args)
    assert "--temperature 0.001 is learned, and held in 0.01 to 1.0 from the first step on" in capsys.readouterr().err
    model = clip_finetune.Signed(towers, args)
    assert model.logit_scale.exp().item() == pytest.approx(100)
    model.logit_scale.data.add_(1)
    assert (model.clamp_scale(), model.clamp_scale()) == (True, False)
    with monkeypatch.context() as patch:
        patch.setattr(clip_finetune.Signed, "clamp_scale", lambda self: True)
        clip_finetune.fit("signed", towers, judge.source, plan, args, checkpoint)
    said = f"signed: the temperature was held in 0.01 to 1.0 in {len(plan)} steps"
    assert said in capsys.readouterr().err
    clip_finetune.check(clip_finetune.parse([*options, "--arms", "signed", "--temperature", "0.01"]))
    clip_finetune.check(clip_finetune.parse([*options, "--arms", "trifactor", "--temperature", "0.001"]))
    assert capsys.readouterr().err == ""


def test_what_is_stored_is_known_by_weights_and_files(own: Path):
    tower = nn.Linear(3, 3)
    before = clip_inputs.fingerprint(tower), clip_inputs.version("own.csv")
    assert before == (clip_inputs.fingerprint(tower), clip_inputs.version("own.csv"))
    tower.weight.data[0, 0] += 1
    assert clip_inputs.fingerprint(tower) != before[0]
    assert before[1] is not None
    assert clip_inputs.version("own-0.tar:00.png") is not None
    assert clip_inputs.version("nowhere.png") is None


@pytest.mark.parametrize("kind", OWN)
def test_a_broken_image_is_skipped_counted_and_listed(own: Path, kind: str, capsys: pytest.CaptureFixture[str]):
    options = ["--data", OWN[kind], "--model", "local-dir:tiny", "--pretrained", "none", "--epochs", "2"]
    sizes = ["--hidden", "16", "--dim", "16", "--batch-size", "12", "--micro-batch", "5", "--held-out", "0.3"]
    clip_finetune.main([*options, *sizes, "--arms", "nonneg", "--device", "cpu"])
    printed = capsys.readouterr()
    assert set(table(printed.out)) == {"frozen start", "non-negative"}
    assert "skipped 1 of 40 images that could not be read:" in printed.err
    assert "06.png (" in printed.err


def test_a_batch_with_one_readable_image_is_left_out_and_said(own: Path, capsys: pytest.CaptureFixture[str]):
    options = ["--data", "csv:own.csv", "--stream", "--batch-size", "2", "--epochs", "1", "--device", "cpu"]
    args = clip_finetune.parse([*TINY, *options, "--arms", "nonneg"])
    judge, towers, _, checkpoint = clip_finetune.prepare(args)
    broken = next(i for i, pair in enumerate(judge.pairs) if pair.place.endswith("06.png"))
    others = [i for i in range(len(judge.pairs)) if i != broken]
    before = clip_finetune.ARMS["nonneg"](towers, args)
    model, _ = clip_finetune.fit(
        "nonneg", towers, judge.source, [([broken, others[0]], 0), (others[1:3], 1)], args, checkpoint
    )
    assert "nonneg: 1 batches had one readable image, and were left out" in capsys.readouterr().err
    assert not torch.equal(next(model.image_head.parameters()), next(before.image_head.parameters()))


def test_a_checkpoint_beyond_the_plan_is_refused(own: Path):
    options = ["--data", "csv:own.csv", "--batch-size", "12", "--epochs", "1", "--device", "cpu", "--arms", "nonneg"]
    run = [*TINY, *options, "--checkpoint", "beyond.pt"]
    clip_finetune.main(run)
    saved = torch.load("beyond.pt")
    for step in (99, -1):
        saved["arms"]["nonneg"]["step"] = step
        torch.save(saved, "beyond.pt")
        with pytest.raises(SystemExit, match=rf"^error: beyond\.pt is at step {step} of 2: .* remove it"):
            clip_finetune.main(run)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_open_clip_model_is_fine_tuned_from_streamed_images(
    own: Path, precision: str, capsys: pytest.CaptureFixture[str]
):
    options = [
        "--data",
        "csv:own.csv",
        "--model",
        "local-dir:tiny",
        "--pretrained",
        "none",
        "--stream",
        "--arms",
        "signed",
    ]
    sizes = [
        "--hidden",
        "16",
        "--dim",
        "16",
        "--batch-size",
        "12",
        "--micro-batch",
        "5",
        "--held-out",
        "0.3",
        "--epochs",
        "3",
    ]
    args = clip_finetune.parse(
        [*options, *sizes, "--image-blocks", "2", "--text-layers", "2", "--precision", precision]
    )
    judge, towers, plan, checkpoint = clip_finetune.prepare(args)
    model, _ = clip_finetune.fit("signed", towers, judge.source, plan, args, checkpoint)
    for tower, start in ((model.image, towers.image), (model.text, towers.text)):
        moved = {n: not torch.equal(p, dict(start.named_parameters())[n]) for n, p in tower.named_parameters()}
        assert moved == {n: p.requires_grad for n, p in tower.named_parameters()}
        assert True in moved.values()
        assert False in moved.values()
    numbers, _ = judge.judge(model)
    assert all(math.isfinite(x) for x in numbers)
    assert list(judge.streamed.reader.skipped) in ([], [str(Path("own/cold/06.png"))])
