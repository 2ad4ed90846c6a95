"""The benchmarks of identifiability and collapse: they resume, publish, and show what theory says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import collapse  # noqa: E402
import identifiability  # noqa: E402
import latents  # noqa: E402
from records import Records, mean_and_spread, parser, publish, run_missing  # noqa: E402


class Cell(NamedTuple):
    arm: str
    lr: float
    seed: int


CELLS = [Cell(arm, lr, seed) for arm in ("a", "b") for lr in (0.1, 1e-3) for seed in (0, 1)]


def test_a_grid_that_was_cut_short_goes_on_where_it_was(tmp_path: Path) -> None:
    ran: list[Cell] = []

    def run(cell: Cell) -> dict[str, object]:
        if len(ran) == 3:
            raise KeyboardInterrupt
        ran.append(cell)
        return {"score": 10 * cell.seed}

    args = parser(None, "x", (0, 1)).parse_args(["--records", str(tmp_path / "deep" / "x.csv")])
    with pytest.raises(KeyboardInterrupt):
        run_missing(args, CELLS, run)
    first, ran = ran, []
    run_missing(args, CELLS[:6], run)
    assert first + ran == CELLS[:6]
    args.only = ["b/0.001/*"]
    ran = []
    records = run_missing(args, CELLS, run)
    assert ran == CELLS[6:]
    assert records.numbers("score", arm="b", lr=0.001) == [0, 10]
    ran = []
    run_missing(args, CELLS, run)
    assert ran == []


def test_a_pattern_that_matches_nothing_is_an_error(tmp_path: Path) -> None:
    args = parser(None, "x", (0,)).parse_args(["--only", "c/*", "--records", str(tmp_path / "x.csv")])
    with pytest.raises(SystemExit, match=r"no cell matches \['c/\*'\]"):
        run_missing(args, CELLS, lambda cell: {})


def test_a_table_replaces_what_is_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "identifiability.md"
    page.write_text("a\n<!-- t -->\nold\n<!-- /t -->\nb\n")
    publish(tmp_path, "t", "new")
    publish(tmp_path, "absent", "nothing")
    assert page.read_text() == "a\n<!-- t -->\nnew\n<!-- /t -->\nb\n"


def test_spread() -> None:
    assert [mean_and_spread(v, 1) for v in ([], [2.0], [1.0, 3.0])] == ["-", "2.0", "2.0 (1.0 to 3.0)"]


@pytest.mark.parametrize("cell", ["box/nwj/mlp", "dependent/infonce/mlp", "normal/scl/scalar", "scenes/nce/mlp"])
def test_a_short_run_gives_every_column(cell: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    short = identifiability.Budget(steps=2, batch_size=8, lr=1e-3, evaluated=64)
    monkeypatch.setattr(identifiability, "LATENTS", short)
    monkeypatch.setattr(identifiability, "IMAGES", short)
    key = identifiability.Cell(*cell.split("/"), 0)
    records = Records(tmp_path / "x.csv", key._fields)
    records.append({**key._asdict(), **identifiability.run(key)})
    assert all(-100 < value <= 100 for name in ("mcc", "mcc_rank", "r2") for value in records.numbers(name))
    identifiability.picture(records, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 1000
    assert cell.split("/")[0] in identifiability.table(records, "mcc")


def test_the_grid_has_no_run_twice_and_no_scalar_for_infonce() -> None:
    cells = list(identifiability.grid((0, 1, 2)))
    assert len(cells) == len(set(cells)) == 213
    assert not any(cell.kind == "infonce" and cell.corrections == "scalar" for cell in cells)


# ------------------------------------------------------------------------------------------------- what is drawn
@pytest.mark.parametrize("name", ["box", "normal", "cubic"])
def test_neighbours_stay_in_the_box(name: str) -> None:
    s, t = latents.SETTINGS[name].draw(5000, 3)
    assert (t >= 0).all()
    assert (t <= 1).all()
    assert 0.02 < (t - s).abs().mean() < 0.15


def test_factors_depend_under_norm_noise_only() -> None:
    dependent = latents.norm_noise((40_000, 3), 0.15, 3).abs().T
    independent = latents.generalised_normal((40_000, 3), 0.15, 3).abs().T
    assert torch.corrcoef(dependent)[0, 1] > 0.15
    assert torch.corrcoef(independent)[0, 1].abs() < 0.03


def test_norm_noise_has_the_density_it_is_named_after() -> None:
    # Radii of exp(-r / scale) in 3 dimensions are Gamma(3, scale): mean 3 scale, variance 3 scale^2.
    radius = torch.linalg.vector_norm(latents.norm_noise((100_000, 3), 0.15, 3), ord=3, dim=1)
    assert radius.mean().item() == pytest.approx(0.45, rel=0.01)
    assert radius.var().item() == pytest.approx(3 * 0.15**2, rel=0.03)


def test_mixing_is_invertible() -> None:
    network = latents.mixing(3)
    s = torch.rand(500, 3)
    x = network(s)
    jacobian = torch.func.vmap(torch.func.jacrev(network))(s)
    assert (torch.linalg.det(jacobian).sign() == torch.linalg.det(jacobian)[0].sign()).all()
    assert torch.linalg.cond(jacobian).max() < 1e3
    assert x.shape == s.shape


def test_every_factor_changes_the_scene_and_no_two_scenes_are_alike() -> None:
    s = torch.rand(300, 5)
    images = latents.render(s)
    assert images.shape == (300, 3, 32, 32)
    assert images.min() >= 0
    assert images.max() <= 1
    for factor in range(5):
        moved = s.clone()
        moved[:, factor] = (s[:, factor] + 0.3).clamp_max(1)
        change = (latents.render(moved) - images).flatten(1).norm(dim=1)
        assert change[s[:, factor] < 0.7].min() > 0.5
    distance = torch.cdist(images.flatten(1), images.flatten(1)).fill_diagonal_(torch.inf)
    assert distance.min() > 0.2


# --------------------------------------------------------------------------------------------------- what is shown
@pytest.mark.slow
def test_anchors_make_collapse_rarer() -> None:
    def uncollapsed(anchors: str) -> int:
        cells = [collapse.Cell("none", 0.3, anchors, seed) for seed in range(6)]
        return sum(float(str(collapse.run(cell)["effective_rank"])) > 1.5 for cell in cells)

    assert uncollapsed("with") >= uncollapsed("without") + 2


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("cell", "mcc", "r2"),
    [
        ("cubic/infonce/mlp", (99, 100), (99, 100)),
        ("marginal/nce/mlp", (99, 100), (99, 100)),
        ("marginal/nwj/mlp", (99, 100), (99, 100)),
        ("marginal/scl/mlp", (97, 100), (97, 100)),
        ("normal/nce/mlp", (0, 98), (99.5, 100)),  # a rotation is free
        ("marginal/nce/none", (0, 90), (0, 95)),  # no ratio above 1 without an offset
        ("marginal/nwj/none", (0, 90), (0, 95)),
    ],
)
def test_latents_come_back_as_theory_says(
    cell: str, mcc: tuple[float, float], r2: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    third = identifiability.Budget(steps=1000, batch_size=256, lr=4e-3, evaluated=4096)  # of the steps of the record
    monkeypatch.setattr(identifiability, "LATENTS", third)
    row = identifiability.run(identifiability.Cell(*cell.split("/"), 0))
    assert mcc[0] <= float(str(row["mcc"])) <= mcc[1]
    assert r2[0] <= float(str(row["r2"])) <= r2[1]
