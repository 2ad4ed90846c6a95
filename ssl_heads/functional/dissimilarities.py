"""The interface of a dissimilarity, as delta losses call it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Dissimilarity(Protocol):
    """How unlike two embeddings are. Rows come in float32 or float64, with autocast off."""

    def paired(self, z: Tensor, w: Tensor) -> Tensor:
        """`d(z_i, w_i)`, of shape (n,)."""
        ...

    def pairwise(self, z: Tensor, w: Tensor) -> Tensor:
        """`d(z_i, w_j)`, of shape (n, m)."""
        ...

    def factors(self, z: Tensor, w: Tensor) -> tuple[Tensor, Tensor] | None:
        """Query and key with `-d(z_i, w_j) = <query_i, key_j>`; None if there is no such form."""
        ...


class Transposed:
    """A dissimilarity whose arguments have changed places."""

    def __init__(self, of: Dissimilarity) -> None:
        self.of = of

    def paired(self, z: Tensor, w: Tensor) -> Tensor:
        """`d(w_i, z_i)`, of shape (n,)."""
        return self.of.paired(w, z)

    def pairwise(self, z: Tensor, w: Tensor) -> Tensor:
        """`d(w_j, z_i)`, of shape (n, m)."""
        return self.of.pairwise(w, z).mT

    def factors(self, z: Tensor, w: Tensor) -> tuple[Tensor, Tensor] | None:
        """Key and query of the dissimilarity that is transposed."""
        factors = self.of.factors(w, z)
        return None if factors is None else (factors[1], factors[0])


def check_dissimilarity(dissimilarity: object) -> None:
    """Raise `ValueError` unless all methods of a `Dissimilarity` are there."""
    missing = [name for name in ("paired", "pairwise", "factors") if not callable(getattr(dissimilarity, name, None))]
    if missing:
        lacking = f"{type(dissimilarity).__name__} lacks {', '.join(missing)}"
        raise ValueError(f"dissimilarity {lacking}: see ssl_heads.functional.dissimilarities.Dissimilarity")
