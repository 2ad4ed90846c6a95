"""The entrance of every metric and picture: tensors, arrays and lists, as people hold them, become checked tensors.

Metrics return Python numbers, so they may look into a tensor. Two rules hold for all of them:

- A row with NaN or infinity makes every number NaN; an order of dimensions and a count, which are integers, become -1.
- A label of -1 means none: such rows are left out.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)  # torch has no arithmetic for them


class SupportsArray(Protocol):
    """NumPy's arrays, and what turns into one: data frames, arrays of other frameworks."""

    def __array__(self) -> Any: ...


ArrayLike: TypeAlias = Tensor | SupportsArray | Sequence[Any]


def as_tensor(name: str, x: ArrayLike) -> Tensor:
    """A dense tensor without gradient; what is no tensor comes to the CPU."""
    if hasattr(x, "embeddings"):
        raise ValueError(f"{name} must be a tensor, an array or a list, got {type(x).__name__}; pass its .embeddings")
    try:
        x = _converted(x)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{name} must be a tensor, an array or a list of numbers or of rows of one shape, got "
            f"{type(x).__name__}: {reason}"
        ) from error
    if x.is_meta:
        raise ValueError(f"{name} is on the meta device, where it has a shape and no values: load it to the cpu")
    return x


def _converted(x: Any) -> Tensor:
    if isinstance(x, Tensor):
        dense = x.detach() if x.layout == torch.strided else x.detach().to_dense()
        return dense.long() if dense.dtype in UNSIGNED else dense
    if isinstance(x, list | tuple) and len(x) > 0 and hasattr(x[0], "__array__"):
        return torch.stack([_converted(row).cpu() for row in x])
    if hasattr(x, "mask"):
        raise ValueError("masked arrays are not read, because the mask would be lost: pass x.filled(-1)")
    if hasattr(x, "__array__"):
        array = x.__array__()  # copied in the machine's byte order: torch takes no other, and no negative strides
        return _converted(torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C")))
    return torch.tensor(x, device="cpu")


def as_matrix(name: str, x: ArrayLike) -> Tensor:
    """A non-empty matrix (n, d) in float32, or in float64 if it was."""
    x = as_tensor(name, x)
    if x.ndim != 2 or x.numel() == 0 or x.is_complex():
        raise ValueError(f"{name} must be a non-empty matrix of shape (n, d), got {x.dtype} of shape {tuple(x.shape)}")
    return x if x.dtype == torch.float64 else x.float()


def as_integers(name: str, x: ArrayLike) -> Tensor:
    """Integers, in int64; floats that are whole numbers pass."""
    refuse_text(name, x)
    x = as_tensor(name, x)
    if x.is_floating_point() or x.is_complex():
        wrong = x[(x != x.real.round()) | ~x.isfinite()]
        if len(wrong) > 0:
            hint = "" if wrong[0].isfinite() else "; a label that is missing is -1"
            raise ValueError(f"{name} must hold integers, got {wrong[0].item()}{hint}")
    return x.real.long()


def refuse_text(name: str, x: Any) -> None:
    """Names of classes are no numbers of classes."""
    if isinstance(x, Tensor):
        return
    with suppress(TypeError):  # a single number has no first entry
        first = next(iter(x), None)
        if isinstance(first, str | bytes):
            raise ValueError(
                f"{name} must hold integers, got the text {first!r}; number the names: "
                f"names = sorted(set({name})); {name} = [names.index(name) for name in {name}]"
            )


def as_classes(name: str, labels: ArrayLike) -> Tensor:
    """Classes as `classes_or_none` reads them, at least one that is a class."""
    y = classes_or_none(name, labels)
    if int(y.max()) < 0:
        raise ValueError(f"{name} are all -1, which means none: no row has a class")
    return y


def classes_or_none(name: str, labels: ArrayLike) -> Tensor:
    """Classes 0, 1, ..., or -1 for none: int64 of shape (n,), from (n,) or (n, 1)."""
    y = as_integers(name, labels)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or len(y) == 0:
        hint = "; one-hot rows become classes by .argmax(1)" if y.ndim == 2 else ""
        raise ValueError(f"expected {name} (n,), one integer a row, got shape {tuple(y.shape)}{hint}")
    if int(y.min()) < -1:
        raise ValueError(f"{name} must be classes 0, 1, ..., or -1 for none, got {int(y.min())}")
    return y


def as_labels(name: str, labels: ArrayLike, owner: str, of: Tensor) -> Tensor:
    """One class, or -1, for each row of another tensor, on its device."""
    return one_a_row(name, as_classes(name, labels), owner, of)


def one_a_row(name: str, y: Tensor, owner: str, of: Tensor) -> Tensor:
    """Integers (n,) on the device of the matrix whose rows they belong to."""
    if len(y) != len(of):
        raise ValueError(
            f"expected {name} ({len(of)},), one integer for each row of {owner}, got shape {tuple(y.shape)} beside "
            f"{owner} of shape {tuple(of.shape)}"
        )
    return y.to(of.device)


def labelled(name: str, x: ArrayLike, labels_name: str, labels: ArrayLike) -> tuple[Tensor, Tensor]:
    """A matrix and its classes, checked, without the rows that have none."""
    matrix = as_matrix(name, x)
    return with_class(matrix, as_labels(labels_name, labels, name, matrix))


def labelled_part(x: ArrayLike, labels: ArrayLike) -> tuple[Tensor, Tensor]:
    """`labelled` for a part of the data, in which no row needs to have a class."""
    matrix = as_matrix("features", x)
    return with_class(matrix, one_a_row("labels", classes_or_none("labels", labels), "features", matrix))


def with_class(matrix: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that have a class, and their classes; all rows of an embedding that is not finite, so that it shows."""
    known = y >= 0
    if not finite(matrix):
        return matrix, y.clamp_min(0)
    return (matrix, y) if bool(known.all()) else (matrix[known], y[known])


def same_samples(name_a: str, a: ArrayLike, name_b: str, b: ArrayLike) -> tuple[Tensor, Tensor]:
    """Two matrices on the device of the first, whose rows are of the same samples."""
    x, y = as_matrix(name_a, a), as_matrix(name_b, b)
    if len(x) != len(y):
        shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise ValueError(f"{name_a} and {name_b} must hold the same samples, got shapes {shapes}")
    return x, y.to(x.device)


def as_truth(name: str, x: ArrayLike) -> Tensor:
    """A matrix of truth values, from truth values or from zeros and ones."""
    matrix = as_matrix(name, x)
    wrong = matrix[(matrix != 0) & (matrix != 1)]
    if len(wrong) > 0:
        raise ValueError(f"{name} must hold truth values, or zeros and ones, got {wrong[0].item()}: pass {name} > 0")
    return matrix.bool()


def whole(name: str, value: int, least: int | None = None) -> int:
    """A whole number, not below the least."""
    try:
        number = operator.index(value)
    except TypeError as error:
        raise ValueError(f"{name} must be a whole number, got {value!r}") from error
    if least is not None and number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def finite(*tensors: Tensor) -> bool:
    """Whether no entry is NaN or infinite."""
    return all(bool(x.isfinite().all()) for x in tensors)


def refuse_rows_that_are_not_finite(name: str, x: Tensor) -> None:
    """For pictures, which cannot be NaN."""
    bad = (~x.isfinite().all(dim=1)).nonzero()[:, 0].tolist()
    if bad:
        raise ValueError(f"{len(bad)} of {len(x)} rows of {name} hold NaN or infinity; the first is row {bad[0]}")
