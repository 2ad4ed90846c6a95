"""Loss modules: they store configuration, and survive copying, pickling, compiling."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn

import ssl_heads as heads
from ssl_heads import functional as ours
from tests.checks import relative_error

N, D = 12, 6


def example(name: str) -> tuple[Tensor, ...]:
    """Arguments for the forward pass of a module."""
    a, b = torch.randn(N, D), torch.randn(N, D)
    labels = torch.arange(N) % 4
    return {
        "ids": (a, b, labels),
        "queue": (a, b, torch.randn(2 * N + 3, D)),
        "clip": (a, b, torch.tensor([2.0], requires_grad=True), torch.tensor([-1.0], requires_grad=True)),
        "labels": (a, labels),
        "pairs": (a, b),
    }[name]


def modules() -> dict[str, tuple[nn.Module, str]]:
    """Every loss in every configuration that takes another path, with the name of its arguments."""
    built: dict[str, tuple[nn.Module, str]] = {
        "spectral": (heads.SpectralLoss(), "pairs"),
        "cross_entropy": (heads.NonNegCrossEntropy(D, 4), "labels"),
        "cross_entropy-signed": (heads.NonNegCrossEntropy(D, 4, nonneg_weight=False), "labels"),
        "tri_factor-spectral": (heads.TriFactorContrast(D, kind="spectral"), "pairs"),
        "tri_factor-spectral-towers": (heads.TriFactorContrast(D, kind="spectral", two_towers=True), "pairs"),
    }
    for impl in ("dense", "tiled", "auto"):
        built |= {
            f"nt_xent-{impl}": (heads.NTXentLoss(0.3, impl=impl), "pairs"),
            f"nt_xent-ids-{impl}": (heads.NTXentLoss(0.3, impl=impl), "ids"),
            f"info_nce-{impl}": (heads.InfoNCELoss(0.3, impl=impl), "pairs"),
            f"info_nce-queue-{impl}": (heads.InfoNCELoss(0.3, impl=impl), "queue"),
            f"clip-{impl}": (heads.CLIPLoss(impl=impl), "clip"),
            f"siglip-{impl}": (heads.SigLIPLoss(impl=impl), "clip"),
            f"sup_con-out-{impl}": (heads.SupConLoss(0.3, impl=impl), "labels"),
            f"sup_con-in-{impl}": (heads.SupConLoss(0.3, "in", impl=impl), "labels"),
            f"tri_factor-{impl}": (heads.TriFactorContrast(D, temperature=0.3, impl=impl), "pairs"),
            f"tri_factor-towers-{impl}": (
                heads.TriFactorContrast(D, temperature=0.3, two_towers=True, impl=impl),
                "pairs",
            ),
        }
    return built


NAMES = tuple(modules())
every_module = pytest.mark.parametrize("name", NAMES)


def build(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    module, arguments = modules()[name]
    return module, example(arguments)


def run(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
    """Value, and gradients of all floating arguments and parameters."""
    fresh = [x.detach().clone().requires_grad_() if x.is_floating_point() else x for x in arguments]
    value = module(*fresh)
    wanted = [x for x in (*fresh, *module.parameters()) if x.requires_grad]
    gradients = torch.autograd.grad(value, wanted, allow_unused=True)
    return value.detach(), [torch.zeros_like(x) if g is None else g for g, x in zip(gradients, wanted, strict=True)]


# at this size "auto" is "dense", but for NT-Xent, whose small batches have a path of their own
@pytest.mark.parametrize("name", [n for n in NAMES if not n.endswith("auto") or n == "nt_xent-auto"])
def test_compile_in_one_graph(name: str) -> None:
    torch._dynamo.reset()
    module, arguments = build(name)
    value, gradients = run(module, arguments)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    again, compiled_gradients = run(compiled, arguments)
    assert relative_error(again, value) < 1e-6
    assert any(g.any() for g in gradients)
    for a, e in zip(compiled_gradients, gradients, strict=True):
        assert torch.allclose(a, e, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("impl", ["dense", "tiled"])
def test_compile_with_another_batch_size(impl: str) -> None:
    """A last batch of another size traces again, or takes a dynamic graph; either way it is right."""
    torch._dynamo.reset()
    module = heads.NTXentLoss(impl=impl)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for n in (12, 9, 10):
        arguments = (torch.randn(n, D), torch.randn(n, D))
        value, gradients = run(module, arguments)
        again, compiled_gradients = run(compiled, arguments)
        assert relative_error(again, value) < 1e-6
        assert all(torch.allclose(a, e, atol=1e-7) for a, e in zip(compiled_gradients, gradients, strict=True))


@every_module
def test_copies_are_equal(name: str) -> None:
    module, arguments = build(name)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))
    value = module(*arguments)
    saved = io.BytesIO()
    torch.save(module.state_dict(), saved)
    saved.seek(0)
    restored = build(name)[0]
    assert not module.state_dict() or not torch.equal(restored(*arguments), value), "the state says nothing"
    restored.load_state_dict(torch.load(saved, weights_only=True), strict=True)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), restored):
        assert torch.equal(other(*arguments), value)
        assert repr(other) == repr(module)
        for mine, theirs in zip(module.parameters(), other.parameters(), strict=True):
            assert mine is not theirs


@every_module
def test_learnable_state_can_be_sharded(name: str) -> None:
    assert all(parameter.ndim >= 1 for parameter in build(name)[0].parameters())


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (heads.NTXentLoss(0.3, normalize=False), "temperature=0.3, normalize=False, gather='none', impl='auto'"),
        (heads.InfoNCELoss(0.3, impl="tiled"), "temperature=0.3, normalize=True, gather='none', impl='tiled'"),
        (heads.CLIPLoss(impl="dense"), "CLIPLoss(gather='none', impl='dense')"),
        (heads.SigLIPLoss(impl="dense"), "SigLIPLoss(gather='none', impl='dense')"),
        (heads.SpectralLoss(normalize=False), "normalize=False"),
        (heads.SupConLoss(0.3, "in"), "temperature=0.3, multi_positive='in'"),
        (heads.NonNegCrossEntropy(5, 3), "in_features=5, num_classes=3, nonneg_weight=True"),
        (
            heads.TriFactorContrast(5, kind="spectral", decorrelation_weight=0.5, two_towers=True),
            "kind='spectral', temperature=0.2, decorrelation_weight=0.5, two_towers=True",
        ),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, nn.Module) else "",
)
def test_the_representation_shows_the_configuration(module: nn.Module, text: str) -> None:
    assert text in repr(module)


def test_modules_pass_their_configuration_on() -> None:
    """Each option reaches its equation: another value gives another loss."""
    a, b, labels = torch.randn(N, D), torch.randn(N, D), torch.arange(N) % 4
    queue, s = torch.randn(20, D), torch.ones(D)
    scale, bias = torch.tensor(3.0), torch.tensor(-2.0)
    pairs = [
        (heads.NTXentLoss(0.4)(a, b), ours.nt_xent(a, b, 0.4)),
        (heads.NTXentLoss(0.4)(a, b, labels), ours.nt_xent(a, b, 0.4, ids=labels)),
        (heads.NTXentLoss(0.4, normalize=False)(a, b), ours.nt_xent(a, b, 0.4, normalize=False)),
        (heads.InfoNCELoss(0.4)(a, b), ours.info_nce(a, b, None, 0.4)),
        (heads.InfoNCELoss(0.4)(a, b, queue), ours.info_nce(a, b, queue, 0.4)),
        (heads.InfoNCELoss(0.4, normalize=False)(a, b, queue), ours.info_nce(a, b, queue, 0.4, normalize=False)),
        (heads.CLIPLoss()(a, b, scale), ours.clip_loss(a, b, scale)),
        (heads.SigLIPLoss()(a, b, scale, bias), ours.siglip_loss(a, b, scale, bias)),
        (heads.SpectralLoss()(a, b), ours.spectral_contrastive(a, b)),
        (heads.SpectralLoss(normalize=False)(a, b), ours.spectral_contrastive(a, b, normalize=False)),
        (heads.SupConLoss(0.4)(a, labels), ours.sup_con(a, labels, 0.4)),
        (heads.SupConLoss(0.4, "in")(a, labels), ours.sup_con(a, labels, 0.4, multi_positive="in")),
        (heads.TriFactorContrast(D).terms(a, b).contrast, ours.tri_factor_contrast(a, b, s)),
        (
            heads.TriFactorContrast(D, kind="spectral").terms(a, b).contrast,
            ours.tri_factor_spectral(a, b, s),
        ),
        (heads.TriFactorContrast(D, two_towers=True).terms(a, b).contrast, ours.tri_factor_two_towers(a, b, s)),
        (
            heads.TriFactorContrast(D, kind="spectral", two_towers=True).terms(a, b).contrast,
            ours.tri_factor_spectral_two_towers(a, b, s),
        ),
    ]
    for actual, expected in pairs:
        assert torch.allclose(actual, expected, rtol=1e-6)
    values = [round(expected.item(), 5) for _, expected in pairs[:12]]
    assert len(set(values)) == len(values), "two configurations cannot be told apart by these inputs"


@pytest.mark.parametrize("impl", ["dense", "tiled"])
def test_the_implementation_is_passed_on(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ssl_heads.similarity import dense

    calls = []
    for function in ("log_sums", "softplus_of_negatives"):
        original = getattr(dense, function)
        monkeypatch.setattr(
            dense, function, lambda *args, f=original, **options: calls.append(f.__name__) or f(*args, **options)
        )
    for name in NAMES:
        if name.endswith(impl):
            module, arguments = build(name)
            calls.clear()
            module(*arguments)
            assert bool(calls) == (impl == "dense"), name


@pytest.mark.parametrize("module", [heads.CLIPLoss(), heads.SigLIPLoss()])
def test_output_dictionary(module: nn.Module) -> None:
    arguments = example("clip")
    result = module(*arguments, output_dict=True)
    assert list(result) == ["contrastive_loss"]
    assert torch.equal(result["contrastive_loss"], module(*arguments))
    image, text, scale, bias = arguments
    named = module(image_features=image, text_features=text, logit_scale=scale, logit_bias=bias, output_dict=True)
    assert torch.equal(named["contrastive_loss"], result["contrastive_loss"])


def test_nonneg_cross_entropy_starts_with_every_part_in_use() -> None:
    assert (heads.NonNegCrossEntropy(20, 5).weight >= 0).all()
    assert (heads.NonNegCrossEntropy(20, 5, nonneg_weight=False).weight < 0).any()


def test_nonneg_cross_entropy_learns() -> None:
    torch.manual_seed(0)
    loss = heads.NonNegCrossEntropy(8, 3)
    labels = torch.arange(60) % 3
    features = torch.rand(60, 8) + 2 * torch.nn.functional.one_hot(labels, 8)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.5)
    before = loss(features, labels).item()
    for _ in range(50):
        optimizer.zero_grad()
        loss(features, labels).backward()
        optimizer.step()
    assert loss(features, labels).item() < before / 4


@pytest.mark.parametrize("name", [n for n in NAMES if n.endswith("tiled")] + ["tri_factor-spectral", "spectral"])
def test_compile_with_dynamic_shapes(name: str) -> None:
    """Sizes, and with them a module's numbers, are symbols."""
    torch._dynamo.reset()
    module, arguments = build(name)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    value, gradients = run(module, arguments)
    again, compiled_gradients = run(compiled, arguments)
    assert relative_error(again, value) < 1e-6
    for a, e in zip(compiled_gradients, gradients, strict=True):
        assert torch.allclose(a, e, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("impl", ["dense", "tiled"])
def test_compile_with_a_temperature_schedule(impl: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda a, b, t: ours.nt_xent(a, b, t, impl=impl), fullgraph=True, backend="aot_eager")
    a, b = torch.randn(N, D, requires_grad=True), torch.randn(N, D)
    values = []
    for temperature in (0.5, 0.4, 0.3, 0.2):
        values.append(compiled(a, b, temperature))
        expected = ours.nt_xent(a, b, temperature, impl=impl)
        assert relative_error(values[-1], expected) < 1e-6
        (gradient,), (reference,) = torch.autograd.grad(values[-1], a), torch.autograd.grad(expected, a)
        assert relative_error(gradient, reference) < 1e-5
    assert len({round(v.item(), 4) for v in values}) == 4
