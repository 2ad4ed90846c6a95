"""Activations whose image is non-negative: the constraint of non-negative contrastive learning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.functional import softplus

from ssl_heads import _check
from ssl_heads._modes import is_traced, is_transformed, one_node
from ssl_heads._numerics import at_least_float32

aten = torch.ops.aten

Surrogate = Literal["gelu", "silu", "softplus", "leaky"]
Activation = Literal[
    "relu",
    "rep_relu",
    "rep_relu_silu",
    "rep_relu_softplus",
    "rep_relu_leaky",
    "softplus",
    "sigmoid",
    "exp",
    "square",
]


def _silu_backward(grad: Tensor, z: Tensor) -> Tensor:
    # aten's kernel of this gradient has no derivative; these operators have one
    z = at_least_float32(z)
    sigma = torch.sigmoid(z)
    return (grad * (sigma * (1 + z * (1 - sigma)))).to(grad.dtype)


# name -> function of (upstream gradient, z): upstream gradient times surrogate'(z)
SURROGATE_GRADIENTS: Mapping[Surrogate, Callable[[Tensor, Tensor], Tensor]] = {
    "gelu": lambda grad, z: aten.gelu_backward(grad, z),
    "silu": _silu_backward,
    # above its threshold the kernel returns 1, exact in float64 from 40 on
    "softplus": lambda grad, z: aten.softplus_backward(grad, z, 1.0, 40.0),
    "leaky": lambda grad, z: aten.leaky_relu_backward(grad, z, 0.01, False),
}


SURROGATES: Mapping[Surrogate, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "silu": F.silu,
    "softplus": partial(softplus, threshold=40),
    "leaky": F.leaky_relu,
}


class _RepReLU(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, surrogate: Surrogate) -> Tensor:
        return torch.relu(z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Surrogate], output: Tensor) -> None:
        z, ctx.surrogate = inputs
        ctx.save_for_backward(z)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        (z,) = ctx.saved_tensors
        return SURROGATE_GRADIENTS[ctx.surrogate](grad, z), None


class _RepReLUForwardMode(_RepReLU):
    """`_RepReLU` with a tangent for forward mode, which torch.compile does not support."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Surrogate], output: Tensor) -> None:
        _RepReLU.setup_context(ctx, inputs, output)
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return SURROGATE_GRADIENTS[ctx.surrogate](tangents[0], z)


def _rep_relu_in_operators(z: Tensor, surrogate: Surrogate) -> Tensor:
    """The same value and gradient in torch's own operators, for a trace that is saved: a file holds no Python.

    The operators are the same with and without gradients, because torch checks a trace against a run without them.
    """
    g = SURROGATES[surrogate](z)
    return torch.relu(z).detach() + (g - g.detach())  # the difference is exactly zero


@one_node
def rep_relu(z: Tensor, surrogate: Surrogate = "gelu") -> Tensor:
    r"""Reparameterised ReLU: ReLU forward, the derivative of a smooth surrogate backward.

    .. math:: y = \max(z, 0), \qquad \partial y / \partial z := g'(z)

    ============== ========================================== ============================================
    `surrogate`    :math:`g'(z)`                              closed units
    ============== ========================================== ============================================
    ``"gelu"``     :math:`\Phi(z) + z\,\varphi(z)` (erf form) pushed the wrong way below z = -0.752
    ``"silu"``     :math:`\sigma(z)(1 + z(1 - \sigma(z)))`    pushed the wrong way below z = -1.278
    ``"softplus"`` :math:`\sigma(z)`                          always the right way, vanishing with exp(z)
    ``"leaky"``    1 if z > 0 else 0.01                       always the right way, never vanishing
    ============== ========================================== ============================================

    ``"gelu"`` is the paper's choice. Its derivative is negative for z < -0.752, with a minimum of -0.129 at
    :math:`z = -\sqrt 2`: a strongly negative unit that the loss would open is pushed further down, and far below zero
    the gradient vanishes. ``"softplus"`` and ``"leaky"`` have no such region. Only ``"leaky"`` leaves open units a
    slope of exactly one.

    The forward is bit for bit `torch.relu`, including signed zeros and NaN. Only `z` is kept for the backward,
    which is itself differentiable (a second derivative is the surrogate's).

    Args:
        z: Pre-activations of any shape and floating dtype.
        surrogate: ``"gelu"``, ``"silu"``, ``"softplus"`` or ``"leaky"``.

    Returns:
        Tensor like `z`, never negative.

    Raises:
        ValueError: If `surrogate` is not one of the four names.

    Reference:
        Non-negative Contrastive Learning (ICLR 2024), the reparameterised ReLU of the released code.

    Example:
        >>> z = torch.tensor([-2.0, -0.1, 3.0], requires_grad=True)
        >>> rep_relu(z, "leaky").sum().backward()
        >>> z.grad
        tensor([0.0100, 0.0100, 1.0000])
    """
    _check.choice("surrogate", surrogate, SURROGATE_GRADIENTS)
    if is_traced():
        return _rep_relu_in_operators(z, surrogate)
    function = _RepReLUForwardMode if is_transformed() else _RepReLU
    output: Tensor = function.apply(z, surrogate)
    return output


ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "rep_relu": rep_relu,
    "rep_relu_silu": partial(rep_relu, surrogate="silu"),
    "rep_relu_softplus": partial(rep_relu, surrogate="softplus"),
    "rep_relu_leaky": partial(rep_relu, surrogate="leaky"),
    "softplus": softplus,
    "sigmoid": torch.sigmoid,
    "exp": torch.exp,
    "square": torch.square,
}


def apply_activation(z: Tensor, name: Activation) -> Tensor:
    """Apply a non-negative activation by name.

    `relu` and `rep_relu` give exact zeros, so embeddings can be sparse. `rep_relu` takes gelu's derivative;
    `rep_relu_silu`, `rep_relu_softplus` and `rep_relu_leaky` take the others'. `softplus`, `sigmoid` and
    `exp` are dense. `square` lets both signs of a unit open it. `exp` overflows above 11 in float16 and 88 in
    float32, `square` above 256 in float16.

    Args:
        z: Pre-activations of any shape.
        name: A name of the table above.

    Returns:
        Tensor like `z`, never negative.

    Raises:
        ValueError: If the name is unknown; the message lists the names.

    Example:
        >>> apply_activation(torch.tensor([-1.0, 2.0]), "square")
        tensor([1., 4.])
    """
    _check.choice("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name](z)
