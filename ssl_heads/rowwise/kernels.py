"""Kernels that act on rows: activation, gate, normalisation, importance, divergence, and all their gradients."""

from __future__ import annotations

import triton
import triton.language as tl

from ssl_heads.similarity.triton.kernels import LN_2, LOG2_E

RELU, REP_RELU = tl.constexpr(1), tl.constexpr(2)
NO_GATE, STRAIGHT_THROUGH, SOFT, CONCRETE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)


@triton.jit
def sigmoid(x):
    """`1 / (1 + exp(-x))` without overflow, small values to full relative accuracy."""
    tail = tl.exp2(-tl.abs(x) * LOG2_E)
    return tl.where(x >= 0, 1.0, tail) / (1.0 + tail)


@triton.jit
def log_one_plus(x):
    """`log(1 + x)` for x in [0, 1]."""
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
    """`KL(sigmoid(a) || prior)` and its derivative, in the smaller of p and 1 - p: nothing cancels."""
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
    importance_ptr,  # (D,) float32
    seed_ptr,  # (1,) int64
    key_ptr, query_ptr,  # (N, WIDTH)
    inverse_norm_ptr, kl_ptr,  # (N,) float32
    N, D, z_row, z_feature, a_row, a_feature, temperature, threshold, log_prior, log_not_prior, eps,
    ACTIVATION: tl.constexpr, GATE: tl.constexpr, HAS_KL: tl.constexpr, HAS_IMPORTANCE: tl.constexpr,
    TEMPERED_KL: tl.constexpr,
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
    norm = tl.sqrt_rn(tl.sum(u * u, 1))
    # a row of NaN stays one: no comparison with NaN is true
    inverse_norm = tl.where(norm <= eps, 0.0, 1.0 / norm)
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
    importance_ptr,  # (D,) float32
    seed_ptr,  # (1,) int64
    inverse_norm_ptr,  # (N,) float32
    key_gradient_ptr, query_gradient_ptr,  # (N, D), any row stride
    kl_gradient_ptr,  # (N,) float32
    z_gradient_ptr, a_gradient_ptr,  # (N, D)
    importance_partial_ptr,  # (programs, D) float32
    N, D, z_row, z_feature, a_row, a_feature, key_gradient_row, query_gradient_row, temperature, threshold,
    log_prior, log_not_prior,
    ACTIVATION: tl.constexpr, GATE: tl.constexpr, HAS_KL: tl.constexpr, HAS_IMPORTANCE: tl.constexpr,
    TEMPERED_KL: tl.constexpr, HAS_KEY_GRADIENT: tl.constexpr,
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
    inverse_norm = tl.load(inverse_norm_ptr + rows, mask=rows < N, other=0.0)
    u = f * m * inverse_norm[:, None]

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
