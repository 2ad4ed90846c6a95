"""Projectors whose output is non-negative."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssl_heads import _check
from ssl_heads._start import reset_parts
from ssl_heads.functional.activation import ACTIVATIONS, Activation, apply_activation
from ssl_heads.heads.mlp import MLP, Norm, check_features


class NonNegProjection(nn.Module):
    r"""Projector with a non-negative output: an MLP, then a non-negative activation.

    .. math:: f_+(x) = \mathrm{act}(W_2\,\mathrm{ReLU}(\mathrm{norm}(W_1 x + b_1)) + b_2) \ge 0

    The output is not normalised; the losses do that. `norm` acts on hidden layers only, because normalising the
    output makes it dense. `norm=None` is the paper's projector, which can lose most of its dimensions depending on
    the seed. Non-negative embeddings of unrelated samples start with a positive cosine (about 0.3 for the ReLU family,
    0.7 for softplus), so a temperature tuned for signed embeddings may need to be lower.

    Args:
        in_features: Width of the backbone's features.
        hidden_features: Width of the hidden layers.
        out_features: Width of the embedding.
        num_layers: Number of linear layers; 1 has no hidden layer.
        activation: ``"rep_relu"``, ``"relu"``, ``"softplus"`` or another name of
            `ssl_heads.functional.apply_activation`.
        norm: ``"batch"``, ``"layer"`` or None.
        bias: Whether the linear layers have a bias.

    Shape:
        `(..., in_features) -> (..., out_features)`. With `norm="batch"` every leading dimension counts as batch,
        and training needs at least two rows; otherwise a batch may be empty.

    Raises:
        ValueError: If a width is below 1 or the activation or norm unknown; in forward if the last dimension is wrong,
            or there are fewer than two rows where batch statistics are needed.

    Reference:
        Non-negative Contrastive Learning (ICLR 2024), section 4.

    Example:
        >>> import torch
        >>> head = NonNegProjection(512, 2048, 256)
        >>> z = head(torch.randn(8, 512))
        >>> z.shape, bool((z >= 0).all())
        (torch.Size([8, 256]), True)
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int,
        *,
        num_layers: int = 2,
        activation: Activation = "rep_relu",
        norm: Norm = "batch",
        bias: bool = True,
    ) -> None:
        super().__init__()
        _check.choice("activation", activation, ACTIVATIONS)
        self.in_features, self.hidden_features, self.out_features = in_features, hidden_features, out_features
        self.num_layers, self.activation, self.norm, self.bias = num_layers, activation, norm, bias
        self.mlp = MLP(in_features, hidden_features, out_features, num_layers=num_layers, norm=norm, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Project features of shape (..., in_features) to (..., out_features), never negative."""
        return apply_activation(self.mlp(x), self.activation)

    def reset_parameters(self) -> None:
        """Draw the layers anew, as the constructor does."""
        reset_parts(self)

    def extra_repr(self) -> str:
        """The activation."""
        return f"activation={self.activation!r}"


class NonNegLinear(nn.Module):
    r"""One layer with a non-negative output, :math:`\mathrm{act}(W x + b) \ge 0`.

    The layer loads the weights of a linear layer and has its attributes, but is no subclass of `nn.Linear`, so that
    LoRA, quantisers and other tools for linear layers leave it alone: they would drop the activation, or add their term
    behind it. `fuse_linear_bn_eval` checks no class: do not pass this layer. For tools that act before the activation
    take `NonNegProjection` with `num_layers=1`, which holds a linear layer. `x @ layer` is `layer(x)`, where a
    projection may be a matrix.

    Args:
        in_features: Input width.
        out_features: Output width.
        bias: Whether there is a bias.
        activation: As in `NonNegProjection`.

    Shape:
        `(..., in_features) -> (..., out_features)`.

    Raises:
        ValueError: If a width is below 1 or the activation unknown; in forward if the last dimension is wrong.

    Example:
        >>> import torch
        >>> bool((NonNegLinear(64, 32)(torch.randn(4, 64)) >= 0).all())
        True
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, activation: Activation = "rep_relu"
    ) -> None:
        super().__init__()
        _check.choice("activation", activation, ACTIVATIONS)
        _check.at_least_one("in_features", in_features)
        _check.at_least_one("out_features", out_features)
        self.in_features, self.out_features, self.activation = in_features, out_features, activation
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias as `nn.Linear` does, uniformly within `1 / sqrt(in_features)`."""
        bound = self.in_features**-0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Map features of shape (..., in_features) to (..., out_features), never negative."""
        check_features(x, self.in_features)
        return apply_activation(nn.functional.linear(x, self.weight, self.bias), self.activation)

    def __rmatmul__(self, x: Tensor) -> Tensor:
        """`x @ layer`, for models whose projection is a matrix or a module."""
        output: Tensor = self(x)
        return output

    def extra_repr(self) -> str:
        """The linear layer's, with the activation."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"activation={self.activation!r}"
        )
