"""Do the delta losses recover known latents, up to exactly the ambiguity that theory allows?

    python benchmarks/identifiability.py                        # what is missing of the whole grid, then the pictures
    python benchmarks/identifiability.py --only 'box/*/mlp/*'   # some cells: SETTING/KIND/CORRECTION/SEED
    python benchmarks/identifiability.py --list                 # the cells, and which are done
    python benchmarks/identifiability.py --draw                 # the table and the pictures of what is recorded

Latents of known distribution pass through a random invertible network (or a renderer); an encoder that sees pairs of
observations is trained with one loss; then its embedding is compared with the latents. Each run is one line of the
records and is not run again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from latents import FACTORS, SETTINGS, Setting, laplace_box, mixing, render
from pages import markdown
from records import Records, mean_and_spread, parser, picture_path, publish, run_missing
from torch import Tensor, nn

from ssl_heads import DeltaContrast, LpPower, MLPCorrection, ScalarCorrection, metrics
from ssl_heads.optim import param_groups

KINDS = ("nce", "infonce", "scl", "nwj")
CORRECTIONS = ("none", "scalar", "mlp")
SEEDS = (0, 1, 2)
MISSPECIFIED = ("box-as-normal", "box-as-cubic", "normal-as-laplace")
SCENES = "scenes"


class Cell(NamedTuple):
    """One run."""

    setting: str
    kind: str
    corrections: str
    seed: int


class Budget(NamedTuple):
    """How long a run is."""

    steps: int
    batch_size: int
    lr: float
    evaluated: int


LATENTS = Budget(steps=3000, batch_size=256, lr=2e-3, evaluated=8192)
IMAGES = Budget(steps=1500, batch_size=128, lr=1e-3, evaluated=4096)


def grid(seeds: Sequence[int]) -> Iterator[Cell]:
    """Seed after seed, so that a grid that is cut short has something of everything."""
    for seed in seeds:
        for setting in (*SETTINGS, SCENES):
            for kind in KINDS:
                for corrections in CORRECTIONS:
                    scalar_is_none = kind == "infonce" and corrections == "scalar"
                    only_mlp = setting in MISSPECIFIED or setting == SCENES
                    if not scalar_is_none and (corrections == "mlp" or not only_mlp):
                        yield Cell(setting, kind, corrections, seed)


# ------------------------------------------------------------------------------------------------------------- one run
def encoder(dim: int, width: int = 64, layers: int = 4) -> nn.Module:
    widths = [dim, *[width] * layers]
    modules: list[nn.Module] = []
    for wide, narrow in pairwise(widths):
        modules += [nn.Linear(wide, narrow), nn.LeakyReLU(0.01)]
    return nn.Sequential(*modules, nn.Linear(width, dim))


def image_encoder(dim: int) -> nn.Module:
    widths = (3, 16, 32, 64)
    modules: list[nn.Module] = []
    for wide, narrow in pairwise(widths):
        modules += [nn.Conv2d(wide, narrow, 4, stride=2, padding=1), nn.LeakyReLU(0.01)]
    return nn.Sequential(*modules, nn.Flatten(), nn.Linear(1024, 256), nn.LeakyReLU(0.01), nn.Linear(256, dim))


class Standardise(nn.Module):
    """Observations with mean 0 and deviation 1: the encoder stalls on a box as it comes."""

    def __init__(self, sample: Tensor) -> None:
        super().__init__()
        axes = [0, *range(2, sample.ndim)]
        self.register_buffer("mean", sample.mean(axes, keepdim=True))
        self.register_buffer("deviation", sample.std(axes, keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation


def criterion(kind: str, corrections: str, setting: Setting, dim: int) -> DeltaContrast:
    alpha: nn.Module | None = None
    alpha_tilde: nn.Module | None = None
    if corrections == "scalar":
        alpha = ScalarCorrection()
    if corrections == "mlp":
        alpha, alpha_tilde = (None if kind == "infonce" else MLPCorrection(dim)), MLPCorrection(dim)
    return DeltaContrast(kind, setting.dissimilarity(), alpha, alpha_tilde)  # type: ignore[arg-type]


def warmed_up(loss: DeltaContrast) -> DeltaContrast:
    """What to train with at first: SCL's few large ratios are noise until NCE has found about where they are."""
    return DeltaContrast("nce", loss.dissimilarity, loss.alpha, loss.alpha_tilde) if loss.kind == "scl" else loss


def run(cell: Cell) -> dict[str, object]:
    torch.manual_seed(cell.seed)
    images = cell.setting == SCENES
    budget, dim = (IMAGES, len(FACTORS)) if images else (LATENTS, 3)
    setting = Setting(laplace_box, lambda: LpPower(1), "rendered scenes") if images else SETTINGS[cell.setting]
    observe = render if images else mixing(dim)
    observe_first = observe(setting.draw(2048, dim)[0])
    model = nn.Sequential(Standardise(observe_first), image_encoder(dim) if images else encoder(dim))
    loss = criterion(cell.kind, cell.corrections, setting, dim)
    modules = [module for module in (model, loss) if list(module.parameters())]
    optimizer = torch.optim.Adam(param_groups(*modules, lr=budget.lr, weight_decay=0.0), fused=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, budget.steps)

    start, losses, clamped = time.perf_counter(), [], []
    warm_up = warmed_up(loss)
    for step in range(budget.steps):
        pair = setting.draw(budget.batch_size, dim)
        z, w = model(observe(torch.cat(pair))).chunk(2)
        terms = (warm_up if step < budget.steps // 3 else loss).terms(z, w)
        optimizer.zero_grad()
        terms.loss.backward()
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 10.0)
        optimizer.step()
        scheduler.step()
        losses.append(terms.loss.item())
        clamped.append(terms.clamp_rate.item())
    seconds = time.perf_counter() - start

    with torch.no_grad():
        s, _ = setting.draw(budget.evaluated, dim)
        z = torch.cat([model(observe(part)) for part in s.split(1024)])
    linear = metrics.mean_correlation_coefficient(z, s)
    return {
        "mcc": f"{100 * linear.mean:.3f}",
        "mcc_rank": f"{100 * metrics.mean_correlation_coefficient(z, s, 'rank').mean:.3f}",
        "r2": f"{100 * metrics.linear_r2(z, s):.3f}",
        "worst_factor": f"{100 * float(linear.per_dimension.min()):.3f}",
        "loss": f"{sum(losses[-100:]) / 100:.5f}",
        "clamp_rate": f"{sum(clamped[-100:]) / 100:.2e}",
        "steps": budget.steps,
        "seconds": f"{seconds:.0f}",
    }


# ------------------------------------------------------------------------------------------------- tables and pictures
def table(records: Records, metric: str) -> str:
    """A row a setting and correction, a column a loss: mean over seeds (lowest to highest)."""
    body = []
    for setting in (*SETTINGS, SCENES):
        for corrections in CORRECTIONS:
            cells = []
            for kind in KINDS:
                values = records.numbers(metric, setting=setting, kind=kind, corrections=corrections)
                cells.append(mean_and_spread(values, 1))
            if set(cells) != {"-"}:
                body.append([setting, corrections, *cells])
    return markdown(["setting", "corrections", *KINDS], body)


def picture(records: Records, path: Path) -> None:
    """MCC of every run as a dot, R^2 as a line above it: a gap between them is a rotation."""
    from matplotlib import pyplot as plt

    rows = records.rows()
    settings = [name for name in (*SETTINGS, SCENES) if any(row["setting"] == name for row in rows)]
    figure, axes = plt.subplots(
        1, len(settings), figsize=(2.1 * len(settings) + 0.8, 3.6), sharey=True, layout="constrained", squeeze=False
    )
    colours = dict(zip(CORRECTIONS, ("#9e9e9e", "#e08214", "#2166ac"), strict=True))
    for ax, setting in zip(axes[0], settings, strict=True):
        for k, kind in enumerate(KINDS):
            for c, corrections in enumerate(CORRECTIONS):
                where = {"setting": setting, "kind": kind, "corrections": corrections}
                x = k + 0.25 * (c - 1)
                mcc, r2 = records.numbers("mcc", **where), records.numbers("r2", **where)
                ax.plot([x] * len(mcc), mcc, "o", color=colours[corrections], markersize=4.5, alpha=0.85)
                ax.plot([x] * len(r2), r2, "_", color=colours[corrections], markersize=9, alpha=0.85)
        ax.set_title(setting, fontsize=10)
        ax.set_xticks(range(len(KINDS)), KINDS, fontsize=8, rotation=30)
        ax.set_xlim(-0.6, len(KINDS) - 0.4)
        ax.set_ylim(50, 101)
        ax.axhline(99, color="black", linewidth=0.5, linestyle=":")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("dots: MCC, dashes: R² (percent)")
    handles = [plt.Line2D([], [], marker="o", linestyle="", color=colours[name], label=name) for name in CORRECTIONS]
    figure.legend(handles=handles, title="corrections", loc="outside right center", frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def picture_of_scenes(path: Path) -> None:
    """One factor a row, from low to high, the others in the middle."""
    from matplotlib import pyplot as plt

    columns = 8
    latents = torch.full((len(FACTORS), columns, len(FACTORS)), 0.5)
    for factor in range(len(FACTORS)):
        latents[factor, :, factor] = torch.linspace(0, 1, columns)
    images = render(latents.reshape(-1, len(FACTORS))).permute(0, 2, 3, 1)
    figure, axes = plt.subplots(len(FACTORS), columns, figsize=(columns * 0.8, len(FACTORS) * 0.8))
    for ax, image in zip(axes.flat, images, strict=True):
        ax.imshow(image.numpy())
        ax.axis("off")
    for row, name in enumerate(FACTORS):
        axes[row, 0].set_title(name, fontsize=9, loc="left")
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    args = parser(__doc__, "identifiability", SEEDS).parse_args(argv)
    torch.set_num_threads(1)  # the matrices are small
    records = run_missing(args, grid(args.seeds), run)
    publish(args.docs, "mcc", table(records, "mcc"))
    publish(args.docs, "r2", table(records, "r2"))
    picture(records, picture_path(args.docs, "identifiability"))
    picture_of_scenes(picture_path(args.docs, "scenes"))


if __name__ == "__main__":
    main()
