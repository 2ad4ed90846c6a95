"""Records of runs that take long: one line a run, written when it ends, and no run twice."""

from __future__ import annotations

import argparse
import csv
import datetime
import fnmatch
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from pages import between

HERE = Path(__file__).parent
Cell = TypeVar("Cell", bound=NamedTuple)


class Records:
    """A CSV file that grows. Its key columns name a run.

    Args:
        path: The file; made when the first run ends.
        key: Columns that identify a run.
    """

    def __init__(self, path: Path, key: Sequence[str]) -> None:
        self.path, self.key = path, tuple(key)

    def rows(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def has(self, **key: object) -> bool:
        wanted = tuple(str(key[name]) for name in self.key)
        return any(tuple(row[name] for name in self.key) == wanted for row in self.rows())

    def append(self, row: dict[str, object]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)

    def numbers(self, column: str, **where: object) -> list[float]:
        """The values of a column in the rows that match."""
        return [
            float(row[column]) for row in self.rows() if all(row[name] == str(value) for name, value in where.items())
        ]


def mean_and_spread(values: Iterable[float], digits: int = 2) -> str:
    """``mean (lowest to highest)``, or a dash for nothing."""
    values = list(values)
    if not values:
        return "-"
    mean = f"{sum(values) / len(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


# ------------------------------------------------------------------------------------------------ the command line
def parser(description: str | None, name: str, seeds: Sequence[int]) -> argparse.ArgumentParser:
    """What all grids share: which cells, which records, list or draw."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--only", nargs="+", default=["*"], help="patterns of cells, as --list names them")
    made.add_argument("--seeds", nargs="+", type=int, default=list(seeds))
    made.add_argument("--records", type=Path, default=HERE / "records" / f"{name}.csv")
    made.add_argument("--docs", type=Path, default=HERE.parent / "docs", help="where pictures and tables go")
    made.add_argument("--list", action="store_true", help="print the cells and which are done, and stop")
    made.add_argument("--draw", action="store_true", help="print and draw what is recorded, and stop")
    return made


def label(cell: NamedTuple) -> str:
    """The name of a cell: its fields, separated by slashes."""
    return "/".join(map(str, cell))


def circumstances() -> dict[str, object]:
    """What a run is only comparable with."""
    return {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "date": datetime.date.today().isoformat(),
    }


def run_missing(args: argparse.Namespace, cells: Iterable[Cell], run: Callable[[Cell], dict[str, object]]) -> Records:
    """Run what was asked for and is not recorded yet; returns all records."""
    chosen = [cell for cell in cells if any(fnmatch.fnmatch(label(cell), pattern) for pattern in args.only)]
    if not chosen:
        sys.exit(f"error: no cell matches {args.only}; see --list")
    records = Records(args.records, chosen[0]._fields)
    missing = [cell for cell in chosen if not records.has(**cell._asdict())]
    if args.list:
        print("\n".join(f"{'to do' if cell in missing else 'done ':5}  {label(cell)}" for cell in chosen))
        sys.exit()
    for number, cell in enumerate([] if args.draw else missing):
        result = {**run(cell), **circumstances()}
        records.append({**cell._asdict(), **result})
        shown = ", ".join(f"{name} {value}" for name, value in result.items())
        print(f"[{number + 1}/{len(missing)}] {label(cell)}: {shown}", flush=True)
    return records


def picture_path(docs: Path, name: str) -> Path:
    """Where a picture goes; its folder exists afterwards."""
    path = docs / "images" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def publish(docs: Path, name: str, text: str, page: str = "identifiability.md") -> None:
    """Print a table, and put it into the page between its two marks."""
    print(text)
    path, begin, end = docs / page, f"<!-- {name} -->\n", f"<!-- /{name} -->"
    if path.exists() and begin in (before := path.read_text()):
        path.write_text(between(before, begin, end, f"{text}\n"))
