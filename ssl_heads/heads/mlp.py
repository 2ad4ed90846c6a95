"""The multilayer perceptron under the heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from einops import pack, unpack
from torch import Tensor, nn

from ssl_heads import _check

NORMS: Mapping[str | None, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm1d,
    "layer": nn.LayerNorm,
    None: nn.Identity,
}


def check_width(name: str, value: int) -> None:
    """A count of features or layers, at least one."""
    _check.at_least_one(name, value)


class MLP(nn.Module):
    """Linear layers with normalised ReLU units between them: ``(..., in) -> (..., out)``.

    Args:
        in_features: input width.
        hidden_features: width of each of the ``num_layers - 1`` hidden layers.
        out_features: output width.
        num_layers: number of linear layers; 1 is a single linear map.
        norm: ``"batch"``, ``"layer"`` or ``None``, on hidden layers only.
        bias: whether the linear layers have a bias.

    Raises:
        ValueError: on a width or depth below 1 or an unknown norm; in forward, on a wrong last dimension, or on fewer
            than two rows where batch statistics are needed.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int,
        *,
        num_layers: int = 2,
        norm: str | None = "batch",
        bias: bool = True,
    ) -> None:
        super().__init__()
        check_width("in_features", in_features)
        check_width("hidden_features", hidden_features)
        check_width("out_features", out_features)
        check_width("num_layers", num_layers)
        _check.choice("norm", norm, NORMS)
        self.in_features = in_features
        layers: list[nn.Module] = []
        width = in_features
        for _ in range(num_layers - 1):
            layers += [nn.Linear(width, hidden_features, bias=bias), NORMS[norm](hidden_features), nn.ReLU()]
            width = hidden_features
        self.layers = nn.Sequential(*layers, nn.Linear(width, out_features, bias=bias))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., in)`` to ``(..., out)``."""
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"expected features (..., {self.in_features}); got shape {tuple(x.shape)}")
        rows, leading = pack([x], "* d")
        if self.training and len(rows) < 2 and any(isinstance(layer, nn.BatchNorm1d) for layer in self.layers):
            raise ValueError(
                f"batch normalisation needs at least two rows in training; got input of shape {tuple(x.shape)}. "
                "Use a larger batch, norm='layer', norm=None, or eval()."
            )
        (y,) = unpack(self.layers(rows), leading, "* d")
        output: Tensor = y
        return output
