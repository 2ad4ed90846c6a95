"""The CLIP example, run for real: pretrained encoders on a few emoji."""

from __future__ import annotations

import copy
import signal
from pathlib import Path

import clip_data
import clip_finetune
import clip_report
import pytest
import torch
from PIL import Image

from tests.checks import assert_same
from tests.examples.clip_runs import small, table


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
