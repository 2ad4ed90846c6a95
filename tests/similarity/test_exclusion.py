"""Tiles of a mask are the mask: over random patterns, offsets, periods, ids and tilings."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest
import torch

from ssl_heads.similarity import Exclusion


def literal(e: Exclusion, rows: int, columns: int) -> torch.Tensor:
    """The definition, pair by pair."""
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    for i in range(rows):
        for j in range(columns):
            on_diagonal = e.period > 0 and (j - i - e.offset) % e.period == 0
            by_ids = False
            if e.query_ids is not None and e.key_ids is not None:
                by_ids = (int(e.query_ids[i]) == int(e.key_ids[j])) != e.keep_equal
            mask[i, j] = on_diagonal or by_ids
    return mask


def cuts(count: int, choice: random.Random) -> list[slice]:
    """A random tiling of an axis."""
    edges = sorted({0, count, *(choice.randrange(1, count) for _ in range(choice.randrange(4)) if count > 1)})
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def patterns(choice: random.Random, rows: int, columns: int) -> Iterator[Exclusion]:
    offset = choice.randrange(-rows - 2, columns + 3)
    ids = torch.tensor([choice.randrange(4) for _ in range(rows)])
    key_ids = torch.tensor([choice.randrange(4) for _ in range(columns)])
    yield Exclusion.nothing()
    yield Exclusion.diagonal(rows, columns)
    yield Exclusion.diagonal(rows, columns, offset)
    yield Exclusion.modulo(choice.randrange(1, rows + columns + 3))
    yield Exclusion(offset=offset, period=choice.randrange(1, rows + columns + 3))
    yield Exclusion.equal_ids(ids, key_ids)
    yield Exclusion.equal_ids(ids, key_ids)._replace(keep_equal=True)
    yield Exclusion.diagonal(rows, columns, offset)._replace(query_ids=ids, key_ids=key_ids)
    yield Exclusion.diagonal(rows, columns)._replace(query_ids=ids, key_ids=key_ids, keep_equal=True)
    yield Exclusion.modulo(3)._replace(query_ids=ids, key_ids=key_ids)


@pytest.mark.parametrize("seed", range(40))
def test_tiles_of_the_mask(seed: int) -> None:
    choice = random.Random(seed)
    rows, columns = choice.randrange(1, 14), choice.randrange(1, 14)
    for exclusion in patterns(choice, rows, columns):
        expected = literal(exclusion, rows, columns)
        mask = exclusion.mask(rows, columns, torch.device("cpu"))
        assert torch.equal(torch.zeros_like(expected) if mask is None else mask, expected), exclusion
        matrix = torch.ones(rows, columns)
        for i in cuts(rows, choice):
            for j in cuts(columns, choice):
                tile = torch.ones(i.stop - i.start, j.stop - j.start)
                assert exclusion.fill_(tile, i, j, -torch.inf) is tile
                matrix[i, j] = tile
        assert torch.equal(matrix == -torch.inf, expected), exclusion
        assert torch.equal(matrix[~expected], torch.ones(int((~expected).sum())))


def test_the_random_patterns_are_not_trivial() -> None:
    """Among them are masks that are empty, full and neither, and tilings of several tiles."""
    choice = random.Random(0)
    shares, tiles = set(), 0
    for _ in range(40):
        rows, columns = choice.randrange(1, 14), choice.randrange(1, 14)
        for exclusion in patterns(choice, rows, columns):
            shares.add(literal(exclusion, rows, columns).double().mean().item())
        tiles = max(tiles, len(cuts(rows, choice)) * len(cuts(columns, choice)))
    assert {0.0, 1.0} < shares
    assert len(shares) > 50
    assert tiles >= 9


def test_ids_and_the_other_side_keep_every_other_field() -> None:
    ids, key_ids = torch.arange(3), torch.arange(4)
    pattern = Exclusion.diagonal(3, 4, 2).with_ids(ids, key_ids, keep_equal=True)
    assert pattern[:2] == Exclusion.diagonal(3, 4, 2)[:2]
    assert pattern.query_ids is ids
    assert pattern.key_ids is key_ids
    assert pattern.keep_equal
    turned = pattern.transposed()
    assert (turned.offset, turned.period, turned.keep_equal) == (-2, pattern.period, True)
    assert turned.query_ids is key_ids
    assert turned.key_ids is ids


def test_nothing_needs_no_mask() -> None:
    assert Exclusion.nothing().mask(3, 4, torch.device("cpu")) is None


def test_one_diagonal_never_repeats() -> None:
    """However far apart rows and columns are, the period is longer than the matrix."""
    for rows, columns, offset in ((1, 9, 0), (9, 1, 0), (3, 3, 2), (3, 3, -2), (4, 12, 8), (4, 12, -3)):
        mask = Exclusion.diagonal(rows, columns, offset).mask(rows, columns, torch.device("cpu"))
        assert mask is not None
        pairs = {(i, i + offset) for i in range(rows) if 0 <= i + offset < columns}
        assert {tuple(pair) for pair in mask.nonzero().tolist()} == pairs


def test_symmetric_patterns_are_symmetric() -> None:
    labels = torch.tensor([0, 1, 0, 2, 2, 1])
    for exclusion in (
        Exclusion.modulo(3),
        Exclusion.diagonal(6, 6),
        Exclusion.equal_ids(labels),
        Exclusion.diagonal(6, 6)._replace(query_ids=labels, key_ids=labels, keep_equal=True),
    ):
        mask = exclusion.mask(6, 6, torch.device("cpu"))
        assert mask is not None
        assert torch.equal(mask, mask.T)
