"""The picture of the engine's records: time and memory over the number of rows, both axes logarithmic."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent
STYLE = {
    "ssl-heads": {"color": "#c0392b", "linewidth": 2.6, "zorder": 5},
    "dense cross entropy": {"color": "#2c3e50"},
    "F.linear_cross_entropy": {"color": "#8e44ad"},
    "papers' form": {"color": "#7f8c8d"},
    "lightly": {"color": "#2980b9"},
    "pytorch-metric-learning SupCon": {"color": "#27ae60"},
    "pytorch-metric-learning NTXent": {"color": "#27ae60", "linestyle": ":"},
}


def read(path: Path) -> dict[str, list[dict[str, str]]]:
    """Records by contestant, by rows; those that were left out have no time."""
    by_contestant = defaultdict(list)
    with path.open() as file:
        for record in csv.DictReader(file):
            if record["median_ms"] != "nan":
                by_contestant[record["contestant"]].append(record)
    return dict(by_contestant)


def plot(records: Path, picture: Path) -> None:
    """Draw the records of a sweep."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    by_contestant = read(records)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6))
    for axis, field, title, scale in (
        (axes[0], "median_ms", "forward and backward, milliseconds", 1.0),
        (axes[1], "peak_extra_mb", "peak memory beyond the inputs, MB", 1.0),
    ):
        for name, points in by_contestant.items():
            rows = [int(p["rows"]) for p in points]
            axis.loglog(rows, [scale * float(p[field]) for p in points], marker="o", ms=4, label=name, **STYLE[name])
        axis.set_title(title, loc="left", fontsize=11)
        axis.set_xlabel("rows (2 views x batch)")
        axis.set_xticks([2**k for k in range(8, 17)], [f"{2**k:,}" for k in range(8, 17)], rotation=45, fontsize=8)
        axis.minorticks_off()
        axis.grid(True, which="major", alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    first = next(iter(by_contestant.values()))[0]
    figure.suptitle(
        f"NT-Xent, d={first['width']}, fp32, {first['threads']} threads, torch {first['torch']}", x=0.01, ha="left"
    )
    figure.tight_layout()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    plot(HERE / "records" / "similarity_sweep.csv", HERE.parent / "docs" / "images" / "similarity.png")
