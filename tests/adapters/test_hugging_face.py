"""Hugging Face's CLIP, its Trainer's loss."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_heads import CLIPLoss, FeatureImportance, NonNegProjection, NTXentLoss, TriFactorContrast
from ssl_heads.adapters import Floor, HuggingFaceCLIP
from tests.adapters.support import D, N, unit


@pytest.fixture(scope="module")
def clip_model() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**small, "vocab_size": 20, "max_position_embeddings": 5, "eos_token_id": 19},
        vision_config={**small, "image_size": 8, "patch_size": 4},
        projection_dim=D,
    )
    torch.manual_seed(0)
    return transformers.CLIPModel(config)


def batch() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(19, (N, 5)), "pixel_values": torch.randn(N, 3, 8, 8)}


def test_hugging_face_s_model_gives_its_own_loss(clip_model: nn.Module) -> None:
    outputs = clip_model(**batch(), return_loss=True)
    loss = HuggingFaceCLIP(CLIPLoss(), clip_model)(outputs, labels=None, num_items_in_batch=None)
    torch.testing.assert_close(loss, outputs.loss)
    loss.backward()
    assert clip_model.logit_scale.grad != 0


def dead(out_features: int) -> nn.Module:
    """A head that gives rows of zeros."""
    head = NonNegProjection(16, 16, out_features, num_layers=1, norm=None)
    nn.init.zeros_(head.mlp.layers[0].weight)
    nn.init.constant_(head.mlp.layers[0].bias, -9)
    return head


def test_a_row_of_zeros_is_named_and_a_floor_prevents_it(clip_model: nn.Module) -> None:
    model, given = copy.deepcopy(clip_model), batch()
    model.visual_projection = dead(D)
    loss = HuggingFaceCLIP(NTXentLoss(), model)
    with pytest.raises(ValueError, match=r"no epsilon.*ssl_heads.adapters.Floor\(\) after"):
        loss(model(**given))
    model.visual_projection = nn.Sequential(model.visual_projection, Floor())
    value = loss(model(**given))
    value.backward()
    assert value.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(("dtype", "epsilon"), [(torch.float32, 1e-3), (torch.bfloat16, 1e-3), (torch.float16, 0.1)])
def test_a_floored_row_of_zeros_passes_a_bounded_gradient(dtype: torch.dtype, epsilon: float) -> None:
    """Hugging Face's division without an epsilon, in the model's dtype; 0.1 where squares of 1e-3 underflow."""
    z = torch.zeros(1, 512, dtype=dtype, requires_grad=True)
    floored = Floor(epsilon)(z)
    upstream = F.normalize(torch.randn(1, 512), dim=1).to(dtype)
    (floored / floored.pow(2).sum(dim=-1, keepdim=True).pow(0.5) * upstream).sum().backward()
    assert z.grad is not None
    assert 0.5 / epsilon < z.grad.double().norm() < 1.1 / epsilon


def test_the_trainer_leaves_the_accumulation_to_the_loss(clip_model: nn.Module) -> None:
    outputs = clip_model(**batch())
    whole, quarter = (HuggingFaceCLIP(CLIPLoss(), clip_model, accumulation_steps=k) for k in (1, 4))
    torch.testing.assert_close(quarter(outputs) * 4, whole(outputs))
    with torch.no_grad():
        torch.testing.assert_close(quarter(outputs), whole(outputs))


def test_the_model_is_not_a_part_of_the_loss(clip_model: nn.Module) -> None:
    loss = HuggingFaceCLIP(TriFactorContrast(D), clip_model)
    assert [name for name, _ in loss.named_parameters()] == ["loss.importance.theta"]
    with pytest.raises(ValueError, match="Linear has no logit_scale"):
        HuggingFaceCLIP(CLIPLoss(), nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"no image_embeds and text_embeds.*remove_unused_columns=False"):
        loss(SimpleNamespace(text_embeds=unit(N, D)))


# ---------------------------------------------------------------------------------------------------------- the Trainer


class Pairs(torch.utils.data.Dataset):
    """Random drawings and texts, with or without a labels entry."""

    def __init__(self, n: int, labels: bool = False, first: int = 0) -> None:
        self.n, self.labels, self.first = n, labels, first

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        if i >= self.n:
            raise IndexError(i)
        generator = torch.Generator().manual_seed(self.first + i)
        row = {
            "pixel_values": torch.randn(3, 8, 8, generator=generator),
            "input_ids": torch.randint(19, (5,), generator=generator),
        }
        return {**row, "labels": torch.tensor(i)} if self.labels else row


class Unsized(torch.utils.data.IterableDataset):
    def __init__(self, rows: Pairs) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return iter(self.rows)


def trainer(loss: HuggingFaceCLIP, data: object, folder: Path, *, model: object = None, **options: object):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    arguments = {
        "output_dir": str(folder), "report_to": "none", "remove_unused_columns": False, "use_cpu": True,
        "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1, "optim": "sgd", "learning_rate": 0.0,
        "max_grad_norm": 1e9, "num_train_epochs": 1, "per_device_train_batch_size": 4,
    }  # fmt: skip
    given = {"model": loss._model[0]} if model is None else {"model_init": model}
    made = transformers.Trainer(
        **given,
        args=transformers.TrainingArguments(**{**arguments, **options}),
        train_dataset=data,
        compute_loss_func=loss,
    )
    made._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(data)
    return made


def gradients(loss: HuggingFaceCLIP, data: object, folder: Path, **options: object) -> list[float]:
    """The norm of the gradient of each step."""
    made = trainer(loss, data, folder, **options)
    made.train()
    return [float(entry["grad_norm"]) for entry in made.state.log_history if "grad_norm" in entry]


@pytest.mark.parametrize("labels", [False, True])
def test_each_step_has_the_gradient_of_its_batches_also_the_last(
    clip_model: nn.Module, labels: bool, tmp_path: Path
) -> None:
    """Steps of four batches, the last of an epoch has one or two: the mean over the batches there are."""

    def loss(steps: int) -> HuggingFaceCLIP:
        return HuggingFaceCLIP(CLIPLoss(), copy.deepcopy(clip_model), accumulation_steps=steps)

    (alone,) = gradients(loss(1), Pairs(4, labels, first=16), tmp_path)
    (two,) = gradients(loss(2), Pairs(8, labels, first=16), tmp_path, gradient_accumulation_steps=2)
    accumulated = {"gradient_accumulation_steps": 4}
    assert gradients(loss(4), Pairs(20, labels), tmp_path, **accumulated)[1] == pytest.approx(alone, rel=1e-4)
    assert gradients(loss(4), Pairs(24, labels), tmp_path, **accumulated)[1] == pytest.approx(two, rel=1e-4)
    if labels:  # Trainer counts, so nothing has to be passed
        assert gradients(loss(1), Pairs(20, labels), tmp_path, **accumulated)[1] == pytest.approx(alone, rel=1e-4)


class Unlabelled(Pairs):
    """The first rows, or all, have the label that Trainer does not count."""

    def __init__(self, n: int, none: int) -> None:
        super().__init__(n, labels=True)
        self.none = none

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        row = super().__getitem__(i)
        return {**row, "labels": torch.tensor(-100)} if i < self.none else row


@pytest.mark.parametrize("none", [3, 14])
@pytest.mark.parametrize("steps", [1, 4])
def test_what_the_labels_are_changes_nothing(clip_model: nn.Module, none: int, steps: int, tmp_path: Path) -> None:
    """Batches of 4, 4, 4 and 2 rows: each counts alike, without labels, with some and with none that count."""
    made = [
        gradients(
            HuggingFaceCLIP(CLIPLoss(), copy.deepcopy(clip_model), accumulation_steps=steps),
            data,
            tmp_path,
            gradient_accumulation_steps=steps,
        )
        for data in (Pairs(14), Unlabelled(14, none))
    ]
    assert made[1] == pytest.approx(made[0], rel=1e-5)


def test_a_count_of_labels_that_leaves_rows_out_is_refused(clip_model: nn.Module, tmp_path: Path) -> None:
    loss = HuggingFaceCLIP(CLIPLoss(), copy.deepcopy(clip_model))
    with pytest.raises(ValueError, match=r"a label is -100.*accumulation_steps="):
        gradients(loss, Unlabelled(16, 16), tmp_path, gradient_accumulation_steps=2)


@pytest.mark.parametrize(("given", "real"), [(2, 3), (2, 1), (3, 2), (2, 6)])
@pytest.mark.parametrize("labels", [False, True])
def test_another_number_of_batches_than_the_trainer_s_is_refused(
    clip_model: nn.Module, given: int, real: int, labels: bool, tmp_path: Path
) -> None:
    loss = HuggingFaceCLIP(CLIPLoss(), copy.deepcopy(clip_model), accumulation_steps=given)
    with pytest.raises(ValueError, match=rf"accumulation_steps={given} was given.*args.gradient_accumulation_steps"):
        gradients(loss, Pairs(24, labels), tmp_path, gradient_accumulation_steps=real)
    assert gradients(loss, Pairs(24, labels), tmp_path, gradient_accumulation_steps=given), (
        "the next run is counted anew"
    )


def test_several_labels_are_ignored_like_one(clip_model: nn.Module) -> None:
    outputs, loss = clip_model(**batch()), HuggingFaceCLIP(CLIPLoss(), clip_model)
    labels = torch.arange(N)
    torch.testing.assert_close(loss(outputs, (labels, labels), 4), loss(outputs))


def test_steps_whose_batches_cannot_be_known_are_refused(clip_model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"accumulation_steps=args.gradient_accumulation_steps"):
        gradients(HuggingFaceCLIP(CLIPLoss(), clip_model), Pairs(8), tmp_path, gradient_accumulation_steps=2)
    options = {"gradient_accumulation_steps": 2, "max_steps": 1}
    with pytest.raises(ValueError, match=r"no length.*give each row a labels entry"):
        gradients(HuggingFaceCLIP(CLIPLoss(), clip_model, accumulation_steps=2), Unsized(Pairs(8)), tmp_path, **options)
    assert gradients(HuggingFaceCLIP(CLIPLoss(), clip_model), Unsized(Pairs(8, labels=True)), tmp_path, **options)


@pytest.mark.parametrize("labels", [False, True])
def test_evaluation_has_a_loss(clip_model: nn.Module, labels: bool, tmp_path: Path) -> None:
    model = copy.deepcopy(clip_model)
    made = trainer(HuggingFaceCLIP(CLIPLoss(), model), Pairs(8, labels), tmp_path, per_device_eval_batch_size=8)
    found = made.evaluate(Pairs(8, labels))["eval_loss"]
    rows = torch.utils.data.default_collate(list(Pairs(8)))
    assert found == pytest.approx(model(**rows, return_loss=True).loss.item(), rel=1e-4)
    assert model(**rows).loss is None, "called, the model does what it did"
    for duplicate in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(duplicate(**rows).logit_scale, model(**rows).logit_scale)
        assert type(duplicate) is type(model)
    made.save_model(str(tmp_path / "saved"))
    assert type(clip_model).__name__ in (tmp_path / "saved" / "config.json").read_text()


def test_the_temperature_of_the_model_in_training_learns(clip_model: nn.Module, tmp_path: Path) -> None:
    """Trainer(model_init=...): another model than the one that the adapter was made with."""
    loss = HuggingFaceCLIP(CLIPLoss(), copy.deepcopy(clip_model))
    other = type(clip_model)(clip_model.config)
    with pytest.raises(ValueError, match=r"model_init=lambda: compute_loss.attach\(build\(\)\)"):
        trainer(loss, Pairs(8), tmp_path, model=lambda: other).train()
    made = trainer(
        loss, Pairs(8), tmp_path, model=lambda: loss.attach(type(clip_model)(clip_model.config)), learning_rate=0.01
    )
    made.train()
    assert made.model.logit_scale != other.logit_scale


def test_an_importance_moves_to_the_model_that_is_trained(clip_model: nn.Module) -> None:
    first = copy.deepcopy(clip_model)
    first.importance = FeatureImportance(D)
    loss = HuggingFaceCLIP(TriFactorContrast(importance=first.importance), first)
    second = copy.deepcopy(clip_model)
    with pytest.raises(ValueError, match=r"learns importance.theta of another model.*model.importance = "):
        loss.attach(second)
    second.importance = first.importance
    loss(loss.attach(second)(**batch())).backward()
    assert second.importance.theta.grad.abs().sum() > 0
