"""A swapped model shows the numbers of its head: what `Floor` changes, the metrics do not see."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_heads import NonNegLinear, NonNegProjection, metrics
from ssl_heads.adapters import Floor

N, WIDTH, DTYPES = 64, 32, (torch.float32, torch.bfloat16, torch.float16)


def by_hugging_face(z: Tensor) -> Tensor:
    return z / z.pow(2).sum(dim=-1, keepdim=True).pow(0.5)


def by_torch(z: Tensor) -> Tensor:
    return F.normalize(z, dim=-1)


def sparse_rows(dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """What a trained head gives: most entries zero, some rows short, one dimension never active."""
    z = torch.rand(N, WIDTH) * (torch.rand(N, WIDTH) < 0.15) * torch.logspace(0, -4, N)[:, None] * scale
    z[:, 0] += 0.1 * scale
    z[:, 5] = 0
    return z.to(dtype)


def numbers(z: Tensor) -> list[float]:
    z, labels = z.detach(), torch.arange(len(z)) % 4
    consistency = metrics.class_consistency(z, labels)
    return [
        metrics.sparsity(z),
        metrics.alive_dimensions(z),
        consistency.mean,
        consistency.weighted_mean,
        consistency.chance_corrected,
    ]


@pytest.mark.parametrize("normalize", [by_hugging_face, by_torch])
@pytest.mark.parametrize("scale", [1.0, 1e-3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_numbers_are_those_of_the_head(
    dtype: torch.dtype, scale: float, normalize: Callable[[Tensor], Tensor]
) -> None:
    z = sparse_rows(dtype, scale)
    swapped = normalize(Floor()(z))
    assert numbers(swapped) == numbers(z)
    assert 0.5 < metrics.sparsity(z) < 1
    wanted = metrics.expected_activation(z).per_dimension
    torch.testing.assert_close(metrics.expected_activation(swapped).per_dimension, wanted, rtol=0, atol=4e-3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_long_rows_stay_as_they_are(dtype: torch.dtype) -> None:
    z = torch.rand(8, WIDTH).to(dtype)
    assert torch.equal(Floor()(z), z)
    assert Floor()(torch.full((2, 3), torch.nan)).isnan().all()


@pytest.mark.parametrize("normalize", [by_hugging_face, by_torch])
@pytest.mark.parametrize("dim", [3, 512, 4096])
@pytest.mark.parametrize("dtype", DTYPES)
def test_short_rows_and_rows_of_zeros_have_a_length_and_a_bounded_gradient(
    dtype: torch.dtype, dim: int, normalize: Callable[[Tensor], Tensor]
) -> None:
    z = (torch.rand(4, dim) * torch.tensor([0.0, 1e-7, 1e-5, 1e-2])[:, None]).to(dtype).requires_grad_()
    q = normalize(Floor()(z))
    torch.testing.assert_close(q.float().norm(dim=1), torch.ones(4), rtol=0, atol=0.02)
    assert q[0].nonzero().tolist() == [[dim - 1]]
    (q * F.normalize(torch.randn(4, dim), dim=1).to(dtype)).sum().backward()
    assert z.grad is not None
    length = z.grad.float().norm(dim=1)
    assert ((length > 1) & (length < 1.1e3)).all()


def test_tools_that_trace_take_it() -> None:
    z = sparse_rows(torch.float32) * torch.linspace(0, 1e-2, N)[:, None]
    expected = Floor()(z)
    for tool in (
        torch.fx.symbolic_trace,
        lambda module: torch.jit.trace(module, z),
        lambda module: torch.export.export(module, (z,)).module(),
        lambda module: torch.compile(module, fullgraph=True, backend="eager"),
    ):
        assert torch.equal(tool(Floor())(z), expected)
    _, tangent = torch.func.jvp(Floor(), (z,), (torch.ones_like(z),))
    assert torch.equal(tangent, torch.ones_like(z))


def test_a_dead_head_looks_dead() -> None:
    """Rows of zeros have no direction and the model gives them one: in one dimension, not in all."""
    swapped = by_hugging_face(Floor()(torch.zeros(N, WIDTH)))
    assert metrics.sparsity(swapped) == 1 - 1 / WIDTH
    assert metrics.alive_dimensions(swapped) == 1
    assert metrics.effective_rank(swapped) == pytest.approx(1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_hugging_face_s_model_shows_the_numbers_of_its_heads(dtype: torch.dtype) -> None:
    transformers = pytest.importorskip("transformers")
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**tower, "vocab_size": 20, "max_position_embeddings": 5, "eos_token_id": 19}
    vision = {**tower, "image_size": 8, "patch_size": 4}
    model = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)
    )
    heads = {"image_embeds": NonNegProjection(16, 32, WIDTH), "text_embeds": NonNegLinear(16, WIDTH)}
    model.visual_projection, model.text_projection = (nn.Sequential(head, Floor()) for head in heads.values())
    given: dict[str, Tensor] = {}
    for name, head in heads.items():
        head.register_forward_hook(lambda head, inputs, z, name=name: given.update({name: z}))
    with torch.no_grad():
        images, names = torch.randn(N, 3, 8, 8, dtype=dtype), torch.randint(19, (N, 5))
        out = model.to(dtype).eval()(input_ids=names, pixel_values=images)
    for name in heads:
        assert numbers(out[name]) == numbers(given[name])
        assert 0.3 < metrics.sparsity(out[name]) < 0.9


@pytest.mark.parametrize("size", [1e-30, 1e-25, 1e-10])
def test_the_direction_of_a_tiny_row_is_kept(size: float) -> None:
    """Squares of such entries vanish in float32."""
    assert torch.allclose(Floor()(torch.tensor([[size, 0.0, 0.0]])), torch.tensor([[1e-3, 0.0, 0.0]]))
