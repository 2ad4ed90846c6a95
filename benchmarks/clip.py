"""What does a CLIP model pay, and gain, for dimensions that have names?

    python benchmarks/clip.py                                  # what is missing of the grid, the tables of docs/clip.md
    python benchmarks/clip.py --only 'test/*/heads/*'          # some cells: JUDGED/ARM/TRAINED/LOSS/.../SEED
    python benchmarks/clip.py --list                           # the cells, and which are done

Every arm of examples/clip_finetune.py on OpenMoji's names. Loss, temperature and dropout are chosen for each arm from
the same grid, on a fifth of the training concepts; then three seeds are judged on concepts that nothing was chosen on.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from pages import markdown
from records import Records, mean_and_spread, parser, publish, run_missing

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import clip_data
import clip_finetune
from clip_finetune import TITLES, Judge
from clip_report import COLUMNS
from clip_towers import Towers

SEEDS = range(3)
COSINES = [
    (loss, temperature, dropout)
    for loss, temperature in (("clip", 0.07), ("clip", 0.2), ("siglip", 0.1), ("siglip", 0.05))
    for dropout in (0.5, 0.7)
]
DECORRELATION = {f"tri-factor, decorrelation {weight}": weight for weight in (0.1, 0.01, 0.001)}
CHOICES = {  # the gated arm takes what the non-negative one chooses; the tri-factor arm has a loss of its own
    "signed": COSINES,
    "nonneg": COSINES,
    "trifactor": [(loss, 0.07, 0.5) for loss in DECORRELATION],
}
OPTIONS = ["--data", "openmoji", "--size", "96", "--epochs", "40", "--batch-size", "512", "--device", "cpu"]
RECALLS = COLUMNS[:6]


class Cell(NamedTuple):
    """One run."""

    judged: str
    arm: str
    loss: str
    temperature: float
    dropout: float
    seed: int


def grid(records: Records, seeds: Sequence[int]) -> Iterator[Cell]:
    """The choice, then what was chosen; the frozen start has nothing to choose."""
    for arm, choices in CHOICES.items():
        for choice in choices:
            yield Cell("validation", arm, *choice, 0)
    yield Cell("test", "frozen", "-", 0, 0, 0)
    for seed in seeds:
        for arm in clip_finetune.ARMS:
            choice = best(records, arm)
            if choice is not None:
                yield Cell("test", arm, *choice, seed)


def best(records: Records, arm: str) -> tuple[str, float, float] | None:
    """The choice with the highest mean of the six recalls on validation concepts, once all are recorded."""
    arm = "nonneg" if arm == "gated" else arm
    scores = {choice: mean_recall(records, arm, choice) for choice in CHOICES[arm]}
    return None if any(map(math.isnan, scores.values())) else max(scores, key=scores.__getitem__)


def mean_recall(records: Records, arm: str, choice: tuple[str, float, float]) -> float:
    where = dict(zip(Cell._fields, ("validation", arm, *choice, 0), strict=True))
    values = [x for column in RECALLS for x in records.numbers(column, **where)]
    return sum(values) / len(values) if values else math.nan


@lru_cache(maxsize=1)
def prepared() -> tuple[Judge, Towers]:
    judge, towers, _, _ = clip_finetune.prepare(clip_finetune.parse(OPTIONS))
    return judge, towers


def run(cell: Cell) -> dict[str, object]:
    judge, towers = prepared()
    seconds = 0.0
    if cell.arm == "frozen":
        numbers = judge.frozen()
    else:
        tri_factor = cell.loss in DECORRELATION
        loss = ["--decorrelation", str(DECORRELATION[cell.loss])] if tri_factor else ["--loss", cell.loss]
        chosen = [*loss, "--temperature", str(cell.temperature), "--dropout", str(cell.dropout)]
        args = clip_finetune.parse([*OPTIONS, *chosen, "--seed", str(cell.seed)])
        if cell.judged == "validation":
            judge = inner(judge)
        plan = list(clip_finetune.steps_of(judge.pairs, judge.train, args))
        kept = clip_finetune.Checkpoint(None, {})
        model, seconds = clip_finetune.fit(cell.arm, towers, judge.source, plan, args, kept)
        numbers, _ = judge.judge(model)
    return {**{name: f"{x:.4f}" for name, x in zip(COLUMNS, numbers, strict=True)}, "seconds": f"{seconds:.0f}"}


def inner(judge: Judge) -> Judge:
    """The training concepts alone, a fifth of them held out."""
    known = [judge.pairs[i] for i in judge.train]
    train, validation = ([judge.train[i] for i in index] for index in clip_data.hold_out(known, 0.2, seed=1))
    return Judge(judge.pairs, train, validation, judge.streamed, judge.source)


def table(records: Records) -> str:
    """Held-out concepts: mean (lowest to highest) over the seeds."""
    body = []
    for arm, title in TITLES.items():
        where = {"judged": "test", "arm": arm}
        digits = [0 if column == "alive dims" else 3 for column in COLUMNS]
        cells = [mean_and_spread(records.numbers(c, **where), d) for c, d in zip(COLUMNS, digits, strict=True)]
        body.append([title, *cells])
    return markdown(["arm", *COLUMNS], body)


def choices(records: Records) -> str:
    """What was tried on validation concepts: the mean of the six recalls."""
    body = []
    for arm, tried in CHOICES.items():
        for choice in tried:
            chosen = "yes" if best(records, arm) == choice else ""
            loss, temperature, dropout = choice
            mean = mean_recall(records, arm, choice)
            body.append([TITLES[arm], loss, str(temperature), str(dropout), f"{mean:.3f}", chosen])
    return markdown(["arm", "loss", "temperature", "dropout", "mean recall", "chosen"], body)


def main(argv: Sequence[str] | None = None) -> None:
    args = parser(__doc__, "clip", SEEDS).parse_args(argv)
    torch.set_num_threads(1)
    records = Records(args.records, Cell._fields)
    for _ in range(2):  # what is chosen is known only once the choice is recorded
        run_missing(args, list(grid(records, args.seeds)), run)
    publish(args.docs, "clip", table(records), page="clip.md")
    publish(args.docs, "clip-choices", choices(records), page="clip.md")


if __name__ == "__main__":
    main()
