"""Embeddings to rows of the similarity matrix and back, one pass over memory each way.

    f = activation(z),   m = gate(a),   v = f * m,   u = v / |v| (0 if |v| <= eps),   q = s * u

Forward writes ``u`` (the keys) and, with an importance ``s``, ``q`` (the queries) into padded buffers that the matrix
kernels read, the inverse norms, and the divergence of the gates from their prior, all in float32 before the one
rounding. Backward computes the row again from ``z`` and ``a``; the noise of the concrete gate is drawn again from its
seed. Only inputs and inverse norms are saved.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssl_heads.functional.normalize import default_eps
from ssl_heads.similarity.triton.configurations import padded_width
from ssl_heads.similarity.triton.device import on_device, require_device
from ssl_heads.similarity.triton.tiles import LN_2, LOG2_E

Activation = Literal["none", "relu", "rep_relu"]
Gate = Literal["none", "straight_through", "soft", "concrete"]
ACTIVATIONS: dict[str, int] = {"none": 0, "relu": 1, "rep_relu": 2}
GATES: dict[str, int] = {"none": 0, "straight_through": 1, "soft": 2, "concrete": 3}
RELU, REP_RELU = tl.constexpr(1), tl.constexpr(2)
NO_GATE, STRAIGHT_THROUGH, SOFT, CONCRETE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)


@triton.jit
def sigmoid(x):
    """``1 / (1 + exp(-x))`` without overflow, small values to full relative accuracy."""
    tail = tl.exp2(-tl.abs(x) * LOG2_E)
    return tl.where(x >= 0, 1.0, tail) / (1.0 + tail)


@triton.jit
def log_one_plus(x):
    """``log(1 + x)`` for x in [0, 1]."""
    series = x * (1.0 - x * (0.5 - x * (0.3333333333 - x * 0.25)))
    return tl.where(x < 0.03, series, tl.log2(1.0 + x) * LN_2)


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    """The activation and the derivative that backward uses."""
    if ACTIVATION == RELU:
        return tl.maximum(z, 0.0), tl.where(z > 0, 1.0, 0.0)
    elif ACTIVATION == REP_RELU:
        normal_cdf = 0.5 * (1.0 + tl.erf(z * 0.7071067811865476))
        normal_pdf = 0.3989422804014327 * tl.exp2(z * z * -0.7213475204444817)
        return tl.maximum(z, 0.0), normal_cdf + z * normal_pdf
    else:
        return z, tl.full(z.shape, 1.0, tl.float32)


@triton.jit
def open_gate(a, seed, positions, temperature, threshold, GATE: tl.constexpr):
    """The gate and its derivative with respect to the logit."""
    if GATE == CONCRETE:
        uniform = tl.minimum(tl.maximum(tl.rand(seed, positions), 1e-7), 1.0 - 1e-7)
        m = sigmoid((a + (tl.log2(uniform) - tl.log2(1.0 - uniform)) * LN_2) / temperature)
        return m, m * (1.0 - m) / temperature
    elif GATE == STRAIGHT_THROUGH:
        p = sigmoid(a / temperature)
        return tl.where(p > threshold, 1.0, 0.0), p * (1.0 - p) / temperature
    elif GATE == SOFT:
        p = sigmoid(a / temperature)
        return p, p * (1.0 - p) / temperature
    else:
        return tl.full(a.shape, 1.0, tl.float32), tl.zeros(a.shape, tl.float32)


@triton.jit
def divergence(a, log_prior, log_not_prior):
    """``KL(sigmoid(a) || prior)`` and its derivative, in the smaller of p and 1 - p: nothing cancels."""
    smaller = -tl.abs(a)
    tail = tl.exp2(smaller * LOG2_E)
    distance = a - (log_prior - log_not_prior)
    is_open = a >= 0
    p = tail / (1.0 + tail)
    kl = tl.where(is_open, -log_prior, -log_not_prior) - log_one_plus(tail) + p * tl.where(is_open, -distance, distance)
    return kl, p / (1.0 + tail) * distance


@triton.jit
def load_matrix(pointer, rows, features, N, D, row_stride, feature_stride):
    """A tile in float32, zero outside."""
    offsets = rows.to(tl.int64)[:, None] * row_stride + features.to(tl.int64)[None, :] * feature_stride
    inside = (rows < N)[:, None] & (features < D)[None, :]
    return tl.load(pointer + offsets, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def prologue_kernel(
    z_ptr, a_ptr,  # (N, D), any strides
    importance_ptr,  # (D,) fp32
    seed_ptr,  # (1,) int64
    key_ptr, query_ptr,  # (N, WIDTH)
    inverse_norm_ptr, kl_ptr,  # (N,) fp32
    N, D, z_row, z_feature, a_row, a_feature, temperature, threshold, log_prior, log_not_prior, eps,
    ACTIVATION: tl.constexpr, GATE: tl.constexpr, HAS_KL: tl.constexpr, HAS_IMPORTANCE: tl.constexpr,
    TEMPERED_KL: tl.constexpr, NORMALIZE: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One block of rows, whole."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    features = tl.arange(0, BLOCK_D)
    inside = (rows < N)[:, None] & (features < D)[None, :]
    z = load_matrix(z_ptr, rows, features, N, D, z_row, z_feature)
    v, _ = activate(z, ACTIVATION)
    if GATE != NO_GATE:
        a = load_matrix(a_ptr, rows, features, N, D, a_row, a_feature)
        positions = rows.to(tl.int64)[:, None] * D + features[None, :]
        seed = 0
        if GATE == CONCRETE:
            seed = tl.load(seed_ptr)
        m, _ = open_gate(a, seed, positions, temperature, threshold, GATE)
        v = v * m
        if HAS_KL:
            if TEMPERED_KL:
                a = a / temperature
            kl, _ = divergence(a, log_prior, log_not_prior)
            tl.store(kl_ptr + rows, tl.sum(tl.where(inside, kl, 0.0), 1), mask=rows < N)
    u = tl.where(inside, v, 0.0)
    if NORMALIZE:
        norm = tl.sqrt_rn(tl.sum(u * u, 1))
        inverse_norm = tl.where(norm > eps, 1.0 / norm, 0.0)
        u = u * inverse_norm[:, None]
        tl.store(inverse_norm_ptr + rows, inverse_norm, mask=rows < N)
    offsets = rows.to(tl.int64)[:, None] * WIDTH + features[None, :]
    padded = (rows < N)[:, None] & (features < WIDTH)[None, :]
    tl.store(key_ptr + offsets, u.to(key_ptr.dtype.element_ty), mask=padded)
    if HAS_IMPORTANCE:
        importance = tl.load(importance_ptr + features, mask=features < D, other=0.0)
        tl.store(query_ptr + offsets, (u * importance[None, :]).to(query_ptr.dtype.element_ty), mask=padded)


@triton.jit
def epilogue_kernel(
    z_ptr, a_ptr,  # (N, D), any strides
    importance_ptr,  # (D,) fp32
    seed_ptr,  # (1,) int64
    inverse_norm_ptr,  # (N,) fp32
    key_gradient_ptr, query_gradient_ptr,  # (N, D), any row stride
    kl_gradient_ptr,  # (N,) fp32
    z_gradient_ptr, a_gradient_ptr,  # (N, D)
    importance_partial_ptr,  # (programs, D) fp32
    N, D, z_row, z_feature, a_row, a_feature, key_gradient_row, query_gradient_row, temperature, threshold,
    log_prior, log_not_prior,
    ACTIVATION: tl.constexpr, GATE: tl.constexpr, HAS_KL: tl.constexpr, HAS_IMPORTANCE: tl.constexpr,
    TEMPERED_KL: tl.constexpr, NORMALIZE: tl.constexpr, HAS_KEY_GRADIENT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The gradient of one block of rows, and its share of the column sums."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    features = tl.arange(0, BLOCK_D)
    inside = (rows < N)[:, None] & (features < D)[None, :]
    z = load_matrix(z_ptr, rows, features, N, D, z_row, z_feature)
    f, slope = activate(z, ACTIVATION)
    a = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    m = tl.full((BLOCK_M, BLOCK_D), 1.0, tl.float32)
    gate_slope = a
    if GATE != NO_GATE:
        a = load_matrix(a_ptr, rows, features, N, D, a_row, a_feature)
        positions = rows.to(tl.int64)[:, None] * D + features[None, :]
        seed = 0
        if GATE == CONCRETE:
            seed = tl.load(seed_ptr)
        m, gate_slope = open_gate(a, seed, positions, temperature, threshold, GATE)
    u = f * m
    inverse_norm = tl.full((BLOCK_M,), 1.0, tl.float32)
    if NORMALIZE:
        inverse_norm = tl.load(inverse_norm_ptr + rows, mask=rows < N, other=0.0)
        u = u * inverse_norm[:, None]

    gradient = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    if HAS_KEY_GRADIENT:
        gradient += load_matrix(key_gradient_ptr, rows, features, N, D, key_gradient_row, 1)
    if HAS_IMPORTANCE:
        query_gradient = load_matrix(query_gradient_ptr, rows, features, N, D, query_gradient_row, 1)
        importance = tl.load(importance_ptr + features, mask=features < D, other=0.0)
        gradient += query_gradient * importance[None, :]
        partial = tl.sum(tl.where(inside, query_gradient * u, 0.0), 0)
        position = tl.program_id(0).to(tl.int64) * D
        tl.store(importance_partial_ptr + position + features, partial, mask=features < D)
    if NORMALIZE:
        radial = tl.sum(gradient * u, 1)
        gradient = (gradient - radial[:, None] * u) * inverse_norm[:, None]

    offsets = rows.to(tl.int64)[:, None] * D + features[None, :]
    tl.store(z_gradient_ptr + offsets, (gradient * m * slope).to(z_gradient_ptr.dtype.element_ty), mask=inside)
    if GATE != NO_GATE:
        a_gradient = gradient * f * gate_slope
        if HAS_KL:
            upstream = tl.load(kl_gradient_ptr + rows, mask=rows < N, other=0.0)
            if TEMPERED_KL:
                _, kl_slope = divergence(a / temperature, log_prior, log_not_prior)
                kl_slope = kl_slope / temperature
            else:
                _, kl_slope = divergence(a, log_prior, log_not_prior)
            a_gradient += upstream[:, None] * kl_slope
        tl.store(a_gradient_ptr + offsets, a_gradient.to(a_gradient_ptr.dtype.element_ty), mask=inside)


class Settings(NamedTuple):
    """How embeddings become rows of the matrix.

    Attributes:
        activation: ``none``, ``relu``, or ``rep_relu`` (ReLU forward, the derivative of GELU backward).
        gate: ``none``, ``straight_through``, ``soft``, or ``concrete`` (logistic noise).
        normalize: Whether rows are divided by their norm.
        temperature: Of the gate.
        threshold: Of the straight-through gate.
        prior: Probability that a gate is open; None leaves the divergence out.
        eps: Norm at or below which a row counts as zero; None takes the default of the embeddings' dtype.
    """

    activation: Activation = "none"
    gate: Gate = "none"
    normalize: bool = True
    temperature: float = 1.0
    threshold: float = 0.5
    prior: float | None = None
    eps: float | None = None


class Rows(NamedTuple):
    """What the prologue writes.

    Attributes:
        key: ``(n, padded width)`` in the embeddings' dtype.
        query: Like ``key``, times the importance; ``key`` itself without one.
        inverse_norm: ``(n,)`` float32, 0 for a zero row.
        kl: ``(n,)`` float32, the divergence summed over dimensions; None without a prior.
    """

    key: Tensor
    query: Tensor
    inverse_norm: Tensor
    kl: Tensor | None


class RowGradients(NamedTuple):
    """What the epilogue returns; None where there is no such input."""

    embeddings: Tensor
    gate_logits: Tensor | None
    importance: Tensor | None


def prologue(
    embeddings: Tensor,
    settings: Settings = Settings(),
    *,
    gate_logits: Tensor | None = None,
    importance: Tensor | None = None,
    seed: Tensor | None = None,
) -> Rows:
    """Activation, gate, normalisation and importance of ``(n, d)`` embeddings, any strides, in one kernel.

    Raises:
        ValueError: for an unknown activation or gate, a gate without logits or noise without a seed, shapes that
            differ, or a tensor on a CPU.
    """
    _check(embeddings, settings, gate_logits, seed)
    n, d = embeddings.shape
    width = padded_width(d)
    key = embeddings.new_empty(n, width)
    query = key if importance is None else torch.empty_like(key)
    inverse_norm = torch.empty(n, dtype=torch.float32, device=embeddings.device)
    kl = torch.empty_like(inverse_norm) if settings.prior is not None else None
    if n:
        block = _block(d, width)
        with on_device(embeddings):
            prologue_kernel[(triton.cdiv(n, block["BLOCK_M"]),)](
                **_inputs(embeddings, settings, gate_logits, importance, seed),
                **block,
                key_ptr=key,
                query_ptr=query,
                inverse_norm_ptr=inverse_norm,
                kl_ptr=inverse_norm if kl is None else kl,
                eps=default_eps(embeddings.dtype) if settings.eps is None else settings.eps,
                WIDTH=width,
            )
    return Rows(key, query, inverse_norm, kl)


def epilogue(
    embeddings: Tensor,
    inverse_norm: Tensor,
    settings: Settings = Settings(),
    *,
    key_gradient: Tensor | None = None,
    query_gradient: Tensor | None = None,
    kl_gradient: Tensor | None = None,
    gate_logits: Tensor | None = None,
    importance: Tensor | None = None,
    seed: Tensor | None = None,
) -> RowGradients:
    """Gradients of `prologue`, given those of its rows ``(n, at least d)`` and of the divergence ``(n,)``.

    Without importance the query is the key: pass the sum of both gradients as ``key_gradient``.
    """
    _check(embeddings, settings, gate_logits, seed)
    if (importance is None) != (query_gradient is None) or (importance is None and key_gradient is None):
        raise ValueError("the epilogue takes query_gradient together with importance, and without both a key_gradient")
    n, d = embeddings.shape
    z_gradient = embeddings.new_empty(n, d)
    a_gradient = None if gate_logits is None else gate_logits.new_empty(n, d)
    block = _block(d, d)
    programs = triton.cdiv(n, block["BLOCK_M"])
    partial = inverse_norm.new_empty(programs, d) if importance is not None else None
    has_kl = settings.prior is not None and kl_gradient is not None
    if n:
        key_gradient, query_gradient = _rows_together(key_gradient), _rows_together(query_gradient)
        with on_device(embeddings):
            epilogue_kernel[(programs,)](
                **_inputs(embeddings, settings, gate_logits, importance, seed) | {"HAS_KL": has_kl},
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
                HAS_KEY_GRADIENT=key_gradient is not None,
            )
    importance_gradient = None
    if partial is not None and importance is not None:
        importance_gradient = partial.sum(0).to(importance.dtype)
    return RowGradients(z_gradient, a_gradient, importance_gradient)


def _check(embeddings: Tensor, settings: Settings, gate_logits: Tensor | None, seed: Tensor | None) -> None:
    require_device(embeddings)
    if embeddings.dim() != 2 or embeddings.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(
            f"the kernels take (n, d) in float32, bfloat16 or float16; got {tuple(embeddings.shape)} in {embeddings.dtype}"
        )
    if settings.activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {settings.activation!r}")
    if settings.gate not in GATES:
        raise ValueError(f"gate must be one of {', '.join(GATES)}; got {settings.gate!r}")
    if (settings.gate == "none") != (gate_logits is None):
        raise ValueError(f"gate {settings.gate!r} and gate_logits come together; got logits: {gate_logits is not None}")
    if gate_logits is not None and gate_logits.shape != embeddings.shape:
        raise ValueError(
            f"gate_logits have the shape of the embeddings; got {tuple(gate_logits.shape)} and {tuple(embeddings.shape)}"
        )
    if settings.gate == "concrete" and seed is None:
        raise ValueError("the concrete gate needs a seed, an int64 tensor of shape (1,) on the device; got None")
    if settings.prior is not None and not 0 < settings.prior < 1:
        raise ValueError(f"prior must lie strictly between 0 and 1; got {settings.prior}")


def _inputs(
    embeddings: Tensor, settings: Settings, gate_logits: Tensor | None, importance: Tensor | None, seed: Tensor | None
) -> dict[str, Any]:
    """The arguments that both kernels share."""
    n, d = embeddings.shape
    prior = 0.5 if settings.prior is None else settings.prior
    logits = embeddings if gate_logits is None else gate_logits
    return {
        "z_ptr": embeddings,
        "a_ptr": logits,
        "importance_ptr": embeddings if importance is None else importance.detach().float().contiguous(),
        "seed_ptr": embeddings if seed is None else seed,
        "N": n,
        "D": d,
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
        "HAS_KL": settings.prior is not None,
        "HAS_IMPORTANCE": importance is not None,
        "TEMPERED_KL": settings.gate != "concrete",
        "NORMALIZE": settings.normalize,
        "num_warps": 4,
    }


def _block(d: int, width: int) -> dict[str, int]:
    """Whole rows, as many as make about 2048 elements a program."""
    features = triton.next_power_of_2(max(d, width))
    return {"BLOCK_M": max(1, 2048 // features), "BLOCK_D": features}


def _rows_together(x: Tensor | None) -> Tensor | None:
    return x if x is None or x.stride(1) == 1 else x.contiguous()
