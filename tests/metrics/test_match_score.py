"""MATCHScore and TAPAScore against their algorithms, sample by sample."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from ssl_heads.metrics import match_gain, match_score, tapa_score


def f(beta: float, true: Sequence[bool], called: Sequence[bool]) -> float:
    tp = sum(t and c for t, c in zip(true, called, strict=True))
    fn, fp = sum(true) - tp, sum(called) - tp
    total = (1 + beta**2) * tp + beta**2 * fn + fp
    return (1 + beta**2) * tp / total if total else 0.0


def by_algorithm(active: Tensor, concepts: Tensor, beta: float, most: int) -> list[tuple[float, list[int]]]:
    dimensions = [column.tolist() for column in active.T]
    results = []
    for y in (column.tolist() for column in concepts.T):
        rest, found, score, chosen = list(y), [False] * len(y), 0.0, []
        while len(chosen) < most:
            values = [f(beta, rest, b) for b in dimensions]
            best = values.index(max(values))
            together = [x or b for x, b in zip(found, dimensions[best], strict=True)]
            if f(1, y, together) <= score:
                break
            score, found = f(1, y, together), together
            rest = [r and not b for r, b in zip(rest, dimensions[best], strict=True)]
            chosen.append(best)
        results.append((score if any(y) else math.nan, chosen + [-1] * (most - len(chosen))))
    return results


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("most", [1, 3, 5])
def test_against_the_algorithm(beta: float, most: int) -> None:
    concepts = torch.rand(60, 5) < 0.4
    concepts[:, 3] = False
    active = torch.cat([torch.rand(60, 6) < 0.2, concepts[:, [0, 1]] & (torch.rand(60, 2) < 0.6)], dim=1)
    expected = by_algorithm(active, concepts, beta, most)
    found = match_score(active, concepts, beta, most)
    assert found.per_concept.tolist() == pytest.approx([score for score, _ in expected], abs=1e-12, nan_ok=True)
    assert found.dimensions.tolist() == [chosen for _, chosen in expected]
    assert found.mean == pytest.approx(sum(s for s, _ in expected if s == s) / 4, abs=1e-12)


def test_a_split_concept_is_found_by_its_parts_together() -> None:
    active = torch.eye(4).repeat(5, 1).bool()
    concept = active[:, :3].any(dim=1, keepdim=True)
    assert match_score(active, concept).mean == 1.0
    assert match_score(active, concept, most=2).mean == pytest.approx(0.8)
    assert match_score(active, concept, most=1).mean == pytest.approx(0.5)


def test_the_gain_is_over_an_untrained_head() -> None:
    concepts = torch.eye(4).repeat(5, 1)
    untrained = torch.rand(20, 4) < 0.3
    found = match_gain(concepts, untrained, concepts)
    assert found.mean == pytest.approx(1 - match_score(untrained, concepts).mean)
    assert found.trained.mean == 1
    assert match_gain(concepts, concepts[:, [2, 0, 1, 3]], concepts).mean == 0


def test_nothing_active_and_no_concept() -> None:
    found = match_score(torch.zeros(6, 2), torch.ones(6, 1))
    assert (found.mean, found.dimensions.tolist()) == (0.0, [[-1, -1, -1]])
    assert math.isnan(match_score(torch.ones(6, 2), torch.zeros(6, 1)).mean)


def test_match_score_refuses() -> None:
    b, y = torch.ones(6, 2), torch.ones(6, 1)
    for value in (0.5, math.nan):
        with pytest.raises(
            ValueError, match=f"active must hold truth values, or zeros and ones, got {value}.*active > 0"
        ):
            match_score(b * value, y)
    with pytest.raises(ValueError, match=r"same samples, got shapes \(6, 2\) and \(5, 1\)"):
        match_score(b, y[:5])
    with pytest.raises(ValueError, match=r"concepts must be a non-empty matrix of shape \(n, d\).*\(6,\)"):
        match_score(b, y[:, 0])
    with pytest.raises(ValueError, match="most must be at least 1, got 0"):
        match_score(b, y, most=0)
    with pytest.raises(ValueError, match="beta"):
        match_score(b, y, beta=0.0)


@pytest.mark.parametrize("form", [Tensor.tolist, Tensor.numpy, Tensor.half, Tensor.bool, Tensor.int], ids=str)
def test_truth_values_as_people_have_them(form) -> None:  # type: ignore[no-untyped-def]
    b, y = (torch.rand(30, 5) < 0.3).float(), (torch.rand(30, 2) < 0.5).float()
    assert match_score(form(b), form(y)).per_concept.tolist() == match_score(b, y).per_concept.tolist()
    pairs = [b[:10], b[10:20]]
    args = (torch.randint(-1, 3, (10,)), torch.randint(-1, 3, (10,)), torch.randint(-1, 5, (3, 2)))
    expected = tapa_score(*pairs, *args).per_pair
    assert torch.equal(
        tapa_score(*map(form, pairs), *(x.tolist() for x in args)).per_pair.nan_to_num(9), expected.nan_to_num(9)
    )


def test_tapa_against_the_definition() -> None:
    before, after = torch.rand(40, 8) < 0.4, torch.rand(40, 8) < 0.4
    coalitions = [[0, 3, -1], [5, -1, -1], [-1, -1, -1], [1, 2, 7]]
    added, removed = torch.randint(-1, 4, (40,)).tolist(), torch.randint(-1, 4, (40,)).tolist()
    expected = []
    for x, y, plus, minus in zip(before.tolist(), after.tolist(), added, removed, strict=True):
        answer = {}
        for concept in (plus, minus):
            members = [j for j in coalitions[concept] if j >= 0] if concept >= 0 else []
            answer[concept] = max((y[j] for j in members), default=0) - max((x[j] for j in members), default=0)
        expected.append(answer[plus] - answer[minus] if plus >= 0 or minus >= 0 else math.nan)
    found = tapa_score(before, after, added, removed, coalitions)
    assert found.per_pair.tolist() == pytest.approx(expected, nan_ok=True)
    counted = [x for x in expected if x == x]
    assert found.mean == pytest.approx(sum(counted) / len(counted))


def test_tapa_of_answers_of_silence_and_of_chance() -> None:
    switch = torch.tensor([[1, 0], [0, 1]])
    assert tapa_score(switch, switch.flip(0), [1, 0], [0, 1], [[0], [1]]).mean == 2
    assert tapa_score(switch, switch, [1, 0], [0, 1], [[0], [1]]).mean == 0
    assert tapa_score(switch, switch.flip(0), [0, 1], [1, 0], [[0], [1]]).mean == -2
    assert math.isnan(tapa_score(switch, switch, [-1, -1], [-1, -1], [[0], [1]]).mean)
    chance = tapa_score(torch.rand(4000, 6) < 0.3, torch.rand(4000, 6) < 0.3, [0] * 4000, [1] * 4000, [[0, 1], [2, 3]])
    assert abs(chance.mean) < 0.05


def test_tapa_refuses() -> None:
    x = torch.ones(3, 4)
    with pytest.raises(ValueError, match=r"pairs of one shape, got \(3, 4\) and \(2, 4\)"):
        tapa_score(x, x[:2], [0] * 3, [1] * 3, [[0], [1]])
    with pytest.raises(ValueError, match=r"added must lie between 0 and 1, or be -1 for none, got 2"):
        tapa_score(x, x, [2] * 3, [1] * 3, [[0], [1]])
    with pytest.raises(ValueError, match=r"dimensions must lie between 0 and 3, or be -1 for none, got 4"):
        tapa_score(x, x, [0] * 3, [1] * 3, [[0], [4]])
    with pytest.raises(ValueError, match=r"expected removed \(3,\)"):
        tapa_score(x, x, [0] * 3, [1] * 2, [[0], [1]])
    with pytest.raises(ValueError, match=r"expected dimensions \(c, most\).*got shape \(2,\)"):
        tapa_score(x, x, [0] * 3, [1] * 3, [0, 1])
