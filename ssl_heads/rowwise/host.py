"""Embeddings to rows of the similarity matrix and back, one pass over memory each way.

    f = activation(z),   m = gate(a),   v = f * m,   u = v / |v| (0 if |v| <= eps),   q = s * u

Forward writes `u` (the keys) and, with an importance `s`, `q` (the queries) into padded buffers that the matrix
kernels read, the inverse norms, and the divergence of the gates from their prior, all in float32 before the one
rounding. Backward computes the row again from `z` and `a`; the noise of the concrete gate is drawn again from its
seed. Only inputs and inverse norms are saved.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
import triton
from torch import Tensor

from ssl_heads._numerics import default_eps
from ssl_heads.rowwise.kernels import epilogue_kernel, prologue_kernel
from ssl_heads.similarity.operators import no_second_derivative
from ssl_heads.similarity.triton.arguments import require_device
from ssl_heads.similarity.triton.configurations import padded_width

Activation = Literal["none", "relu", "rep_relu"]
Gate = Literal["none", "straight_through", "soft", "concrete"]
ACTIVATIONS: dict[str, int] = {"none": 0, "relu": 1, "rep_relu": 2}
GATES: dict[str, int] = {"none": 0, "straight_through": 1, "soft": 2, "concrete": 3}


class Settings(NamedTuple):
    """How embeddings become rows of the matrix.

    Attributes:
        activation: `none`, `relu`, or `rep_relu` (ReLU forward, the derivative of GELU backward).
        gate: `none`, `straight_through`, `soft`, or `concrete` (logistic noise).
        temperature: Of the gate.
        threshold: Of the straight-through gate.
        prior: Probability that a gate is open; None leaves the divergence out.
        eps: Norm at or below which a row counts as zero; None takes the default of the embeddings' dtype.
    """

    activation: Activation = "none"
    gate: Gate = "none"
    temperature: float = 1.0
    threshold: float = 0.5
    prior: float | None = None
    eps: float | None = None


PLAIN = Settings()


class Rows(NamedTuple):
    """Results of the prologue.

    Attributes:
        key: `(n, padded width)` in the embeddings' dtype, or `(n, d)` in another on request.
        query: Like `key`, times the importance; `key` itself without one.
        inverse_norm: `(n,)` float32, 0 for a zero row.
        kl: `(n,)` float32, the divergence summed over dimensions; None without a prior.
    """

    key: Tensor
    query: Tensor
    inverse_norm: Tensor
    kl: Tensor | None


class RowGradients(NamedTuple):
    """Results of the epilogue; None where there is no such input."""

    embeddings: Tensor
    gate_logits: Tensor | None
    importance: Tensor | None


def prologue(
    embeddings: Tensor,
    settings: Settings = PLAIN,
    *,
    gate_logits: Tensor | None = None,
    importance: Tensor | None = None,
    seed: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Rows:
    """Activation, gate, normalisation and importance of `(n, d)` embeddings, any strides, in one kernel.

    With a `dtype` the rows are not padded: they go to torch functions before they go to the matrix kernels.

    Raises:
        ValueError: If the activation or gate is unknown, a gate has no logits, a prior no gate or noise no seed,
            shapes differ, or a tensor is on a CPU or in float64.
    """
    arguments = _arguments(embeddings, settings, gate_logits, importance, seed)
    n, d = embeddings.shape
    width = padded_width(d) if dtype is None else d
    key = embeddings.new_empty(n, width, dtype=dtype)
    query = key if importance is None else torch.empty_like(key)
    inverse_norm = torch.empty(n, dtype=torch.float32, device=embeddings.device)
    kl = torch.empty_like(inverse_norm) if settings.prior is not None else None
    if n:
        block = row_block(width)
        with torch.cuda.device(embeddings.get_device()):
            prologue_kernel[(triton.cdiv(n, block["BLOCK_M"]),)](
                **arguments,
                **block,
                key_ptr=key,
                query_ptr=query,
                inverse_norm_ptr=inverse_norm,
                kl_ptr=inverse_norm if kl is None else kl,
                eps=default_eps(embeddings.dtype) if settings.eps is None else settings.eps,
                HAS_KL=kl is not None,
                WIDTH=width,
            )
    return Rows(key, query, inverse_norm, kl)


def epilogue(
    embeddings: Tensor,
    inverse_norm: Tensor,
    settings: Settings = PLAIN,
    *,
    key_gradient: Tensor | None = None,
    query_gradient: Tensor | None = None,
    kl_gradient: Tensor | None = None,
    gate_logits: Tensor | None = None,
    importance: Tensor | None = None,
    seed: Tensor | None = None,
) -> RowGradients:
    """Gradients of `prologue`, given those of its rows `(n, at least d)` and of the divergence `(n,)`.

    Without importance the query is the key: pass the sum of both gradients as `key_gradient`.
    """
    if (importance is None) != (query_gradient is None) or (importance is None and key_gradient is None):
        raise ValueError("the epilogue takes query_gradient together with importance, and without both a key_gradient")
    arguments = _arguments(embeddings, settings, gate_logits, importance, seed)
    n, d = embeddings.shape
    z_gradient = embeddings.new_empty(n, d)
    a_gradient = None if gate_logits is None else gate_logits.new_empty(n, d)
    block = row_block(d)
    programs = triton.cdiv(n, block["BLOCK_M"])
    partial = None if importance is None else inverse_norm.new_empty(programs, d)
    if n:
        key_gradient, query_gradient = _rows_together(key_gradient), _rows_together(query_gradient)
        with torch.cuda.device(embeddings.get_device()):
            epilogue_kernel[(programs,)](
                **arguments,
                **block,
                inverse_norm_ptr=inverse_norm,
                key_gradient_ptr=embeddings if key_gradient is None else key_gradient,
                query_gradient_ptr=embeddings if query_gradient is None else query_gradient,
                kl_gradient_ptr=inverse_norm if kl_gradient is None else kl_gradient.float().contiguous(),
                z_gradient_ptr=z_gradient,
                a_gradient_ptr=z_gradient if a_gradient is None else a_gradient,
                importance_partial_ptr=inverse_norm if partial is None else partial,
                key_gradient_row=0 if key_gradient is None else key_gradient.stride(0),
                query_gradient_row=0 if query_gradient is None else query_gradient.stride(0),
                HAS_KL=settings.prior is not None and kl_gradient is not None,
                HAS_KEY_GRADIENT=key_gradient is not None,
            )
    by_importance = None if partial is None or importance is None else partial.sum(0).to(importance.dtype)
    return RowGradients(z_gradient, a_gradient, by_importance)


def _arguments(
    embeddings: Tensor, settings: Settings, gate_logits: Tensor | None, importance: Tensor | None, seed: Tensor | None
) -> dict[str, Any]:
    """The arguments that both kernels share."""
    _check(embeddings, settings, gate_logits, seed)
    prior = 0.5 if settings.prior is None else settings.prior
    logits = embeddings if gate_logits is None else gate_logits
    return {
        "z_ptr": embeddings,
        "a_ptr": logits,
        "importance_ptr": embeddings if importance is None else importance.detach().float().contiguous(),
        "seed_ptr": embeddings if seed is None else seed,
        "N": embeddings.shape[0],
        "D": embeddings.shape[1],
        "z_row": embeddings.stride(0),
        "z_feature": embeddings.stride(1),
        "a_row": logits.stride(0),
        "a_feature": logits.stride(1),
        "temperature": settings.temperature,
        "threshold": settings.threshold,
        "log_prior": math.log(prior),
        "log_not_prior": math.log1p(-prior),
        "ACTIVATION": ACTIVATIONS[settings.activation],
        "GATE": GATES[settings.gate],
        "HAS_IMPORTANCE": importance is not None,
        "TEMPERED_KL": settings.gate != "concrete",
    }


def _check(embeddings: Tensor, settings: Settings, gate_logits: Tensor | None, seed: Tensor | None) -> None:
    require_device(embeddings)
    if embeddings.dim() != 2 or embeddings.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        given = f"{tuple(embeddings.shape)} in {embeddings.dtype}"
        raise ValueError(
            f'the kernels take (n, d) in float32, bfloat16 or float16; got {given}: convert them, or pass impl="tiled"'
        )
    if settings.activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {settings.activation!r}")
    if settings.gate not in GATES:
        raise ValueError(f"gate must be one of {', '.join(GATES)}; got {settings.gate!r}")
    if (settings.gate == "none") != (gate_logits is None):
        raise ValueError(f"gate {settings.gate!r} and gate_logits come together; got logits: {gate_logits is not None}")
    if gate_logits is not None and gate_logits.shape != embeddings.shape:
        shapes = tuple(gate_logits.shape), tuple(embeddings.shape)
        raise ValueError(f"gate_logits have the shape of the embeddings; got {shapes[0]} and {shapes[1]}")
    if settings.gate == "concrete" and seed is None:
        raise ValueError("the concrete gate needs a seed, an int64 tensor of shape (1,) on the device; got None")
    if settings.prior is not None and not 0 < settings.prior < 1:
        raise ValueError(f"prior must lie strictly between 0 and 1; got {settings.prior}")
    if settings.prior is not None and settings.gate == "none":
        raise ValueError(f"prior={settings.prior} is that of a gate, and gate is 'none': leave it None, or give a gate")


def row_block(width: int) -> dict[str, int]:
    """Whole rows, as many as make about 2048 elements a program; more warps where one row is longer than that."""
    features = triton.next_power_of_2(width)
    return {"BLOCK_M": max(1, 2048 // features), "BLOCK_D": features, "num_warps": min(max(4, features // 512), 32)}


def _rows_together(x: Tensor | None) -> Tensor | None:
    return x if x is None or x.stride(1) == 1 else x.contiguous()


# ----------------------------------------------------------------------------------- unit rows as an operator of torch

UNIT = Settings(eps=default_eps(torch.float32))


@torch.library.custom_op("ssl_heads::triton_unit_rows", mutates_args=())
def normalized_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """`x_i / |x_i|`, 0 for a zero row, and the inverse norms, in float32: one kernel each way in place of a chain."""
    rows = prologue(x, UNIT, dtype=torch.float32)
    return rows.key, rows.inverse_norm


@normalized_rows.register_fake
def _(x):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape, dtype=torch.float32), x.new_empty(x.shape[0], dtype=torch.float32)


@torch.library.custom_op("ssl_heads::triton_unit_rows_backward", mutates_args=())
def normalized_rows_backward(x: Tensor, inverse_norm: Tensor, gradient: Tensor) -> Tensor:
    """`(g_i - <g_i, u_i> u_i) / |x_i|`, and nothing for a zero row."""
    return epilogue(x, inverse_norm, UNIT, key_gradient=gradient).embeddings


@normalized_rows_backward.register_fake
def _(x, inverse_norm, gradient):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


def _rows_setup(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(inputs[0], output[1])


def _rows_backward(ctx: Any, gradient: Tensor, _: Tensor) -> Tensor:
    found: Tensor = normalized_rows_backward(*ctx.saved_tensors, gradient)
    return found


normalized_rows.register_autograd(_rows_backward, setup_context=_rows_setup)
normalized_rows_backward.register_autograd(no_second_derivative)
