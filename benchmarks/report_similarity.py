"""The records of the engine as a picture and as the tables of docs/performance.md."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

from pages import between, markdown

HERE = Path(__file__).parent
STYLE = {
    "ssl-heads": {"color": "#c0392b", "linewidth": 2.6, "zorder": 5},
    "dense cross entropy": {"color": "#2c3e50"},
    "dense cross entropy, oneDNN": {"color": "#2c3e50", "linestyle": "--"},
    "F.linear_cross_entropy": {"color": "#8e44ad"},
    "papers' form": {"color": "#7f8c8d"},
    "lightly": {"color": "#2980b9"},
    "pytorch-metric-learning SupCon": {"color": "#27ae60"},
    "pytorch-metric-learning NTXent": {"color": "#27ae60", "linestyle": ":"},
}

# The README shows these of all records: two libraries, the fastest other form, and one where ours is slower.
IN_README = (
    ("NT-Xent 2 x 4096, d=256", "lightly"),
    ("NT-Xent 2 x 4096, d=256", "dense cross entropy, oneDNN"),
    ("NT-Xent 2 x 512, d=128", "dense cross entropy, oneDNN"),
    ("CLIP 4096 pairs, d=512", "open_clip"),
    ("SigLIP 1024 pairs, d=512", "dense formula, oneDNN"),
    ("MoCo 256 x 65536, d=128", "einsum and cat"),
)


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


def bars_table(path: Path) -> str:
    """Every contestant of every piece of work; ratios are to ours."""
    lines = [
        "| work | contestant | time | over ours | peak extra memory | gradient error | GFLOP/s | of `torch.mm` |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows(path):
        ours = r["contestant"] == "ssl-heads"
        name = f"**{r['contestant']}**" if ours else r["contestant"]
        rate = f"{float(r['gflops']):.0f} | {100 * float(r['share_of_mm']):.0f} %" if ours else "|"
        error = "-" if r["gradient_error"] == "nan" else f"{float(r['gradient_error']):.0e}"
        lines.append(
            f"| {r['work'] if ours else ''} | {name} | {float(r['median_ms']):,.1f} ms | {float(r['ratio']):.2f} | "
            f"{float(r['peak_extra_mb']):,.1f} MB | {error} | {rate} |"
        )
    return "\n".join(lines)


def sweep_table(path: Path) -> str:
    """Ours at every number of rows, beside the best of the others."""
    by_rows: dict[int, list[dict[str, str]]] = defaultdict(list)
    for r in rows(path):
        by_rows[int(r["rows"])].append(r)
    lines = [
        "| rows | ours | memory | the fastest other | its time over ours | its memory |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for count, records in by_rows.items():
        ours = next(r for r in records if r["contestant"] == "ssl-heads")
        timed = [r for r in records if r is not ours and r["median_ms"] != "nan"]
        line = f"| {count:,} | {float(ours['median_ms']):,.1f} ms | {float(ours['peak_extra_mb']):,.1f} MB | "
        if timed:
            best = min(timed, key=lambda r: float(r["median_ms"]))
            line += f"{best['contestant']} | {float(best['ratio']):.2f} | {float(best['peak_extra_mb']):,.1f} MB |"
        else:
            line += "left out: memory, or a minute a step | | |"
        lines.append(line)
    return "\n".join(lines)


def profile_table(path: Path) -> str:
    """Where one step spends its time."""
    body = [[f"`{r['operation']}`", r["milliseconds"], r["share"]] for r in rows(path)]
    return markdown(["operation", "ms", "share"], body)


def rows(path: Path) -> list[dict[str, str]]:
    """The records of one file."""
    with path.open() as file:
        return list(csv.DictReader(file))


def between_markers(text: str, marker: str, content: str) -> str:
    """The text with what stands between ``<!-- marker -->`` and ``<!-- /marker -->`` replaced."""
    return between(text, f"<!-- {marker} -->", f"<!-- /{marker} -->", f"\n\n{content}\n\n")


def page(text: str, records: Path) -> str:
    """docs/performance.md with the tables of the committed records."""
    for marker, table in (
        ("bars", bars_table(records / "similarity_bars.csv")),
        ("sweep", sweep_table(records / "similarity_sweep.csv")),
        ("profile", profile_table(records / "similarity_profile.csv")),
    ):
        text = between_markers(text, marker, table)
    return text


def summary(path: Path) -> str:
    """The README's lines: ours beside what it replaces."""
    records = {(r["work"], r["contestant"]): r for r in rows(path)}
    body = []
    for work, contestant in IN_README:
        ours, other = records[work, "ssl-heads"], records[work, contestant]
        milliseconds = float(ours["median_ms"])
        memory = f"{float(ours['peak_extra_mb']):,.0f} MB for {float(other['peak_extra_mb']):,.0f} MB"
        time = f"{milliseconds:,.{0 if milliseconds > 10 else 1}f} ms"
        body.append([work, time, contestant, f"{float(other['ratio']):.1f}x", memory])
    threads = next(iter(records.values()))["threads"]
    header = [f"forward and backward, fp32, {threads} CPU threads", "ssl-heads", "in place of", "faster by", "memory"]
    return markdown(header, body)


def readme(text: str, records: Path) -> str:
    """README.md with its lines of the committed records."""
    return between_markers(text, "performance", summary(records / "similarity_bars.csv"))


def main() -> None:
    """Write the picture and the tables."""
    docs = HERE.parent / "docs"
    plot(HERE / "records" / "similarity_sweep.csv", docs / "images" / "similarity.png")
    path = docs / "performance.md"
    path.write_text(page(path.read_text(), HERE / "records"))
    path = HERE.parent / "README.md"
    path.write_text(readme(path.read_text(), HERE / "records"))


if __name__ == "__main__":
    main()
