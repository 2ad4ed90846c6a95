"""The multilayer perceptron under the heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from torch import Tensor, nn

from ssl_heads import _check
from ssl_heads._modes import is_recorded
from ssl_heads._start import reset_parts

Norm = Literal["batch", "layer"] | None
NORMS: Mapping[Norm, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm1d,
    "layer": nn.LayerNorm,
    None: nn.Identity,
}


def check_features(x: Tensor, width: int) -> None:
    """Features of shape (..., width)."""
    if is_recorded(x):
        return
    given: object = x
    if isinstance(given, Mapping):  # sentence-transformers passes a dict from module to module
        raise ValueError(
            f"expected features (..., {width}), got {type(given).__name__} of {', '.join(map(str, given))}. In a "
            "SentenceTransformer wrap the head: ssl_heads.adapters.SentenceTransformersHead(head)"
        )
    if x.dim() == 0 or x.shape[-1] != width:
        raise ValueError(f"expected features (..., {width}), got shape {tuple(x.shape)}")


class MLP(nn.Module):
    """Linear layers with normalised ReLU units between them: `(..., in) -> (..., out)`.

    Args:
        in_features: Input width.
        hidden_features: Width of each of the `num_layers - 1` hidden layers.
        out_features: Output width.
        num_layers: Number of linear layers; 1 is a single linear map.
        norm: ``"batch"``, ``"layer"`` or None, on hidden layers only.
        bias: Whether the linear layers have a bias.

    Raises:
        ValueError: If a width or the depth is below 1 or the norm unknown; in forward if the last dimension is wrong,
            or there are fewer than two rows where batch statistics are needed.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int,
        *,
        num_layers: int = 2,
        norm: Norm = "batch",
        bias: bool = True,
    ) -> None:
        super().__init__()
        _check.at_least_one("in_features", in_features)
        _check.at_least_one("hidden_features", hidden_features)
        _check.at_least_one("out_features", out_features)
        _check.at_least_one("num_layers", num_layers)
        _check.choice("norm", norm, NORMS)
        self.in_features = in_features
        layers: list[nn.Module] = []
        width = in_features
        for _ in range(num_layers - 1):
            layers += [nn.Linear(width, hidden_features, bias=bias), NORMS[norm](hidden_features), nn.ReLU()]
            width = hidden_features
        self.layers = nn.Sequential(*layers, nn.Linear(width, out_features, bias=bias))

    def forward(self, x: Tensor) -> Tensor:
        """Map features of shape (..., in) to (..., out)."""
        check_features(x, self.in_features)
        self._check_batch_statistics(x)
        rows: Tensor = self.layers(x.reshape(-1, self.in_features))
        return rows.reshape(x.shape[:-1] + rows.shape[1:])

    def _check_batch_statistics(self, x: Tensor) -> None:
        if not self.training or is_recorded(x) or x.numel() >= 2 * self.in_features:
            return
        if any(isinstance(layer, nn.BatchNorm1d) for layer in self.layers):
            raise ValueError(
                f"batch normalisation needs at least two rows in training, got input of shape {tuple(x.shape)}. "
                'Use a larger batch, norm="layer", norm=None, or eval().'
            )

    def reset_parameters(self) -> None:
        """Draw the layers anew, as the constructor does."""
        reset_parts(self)
