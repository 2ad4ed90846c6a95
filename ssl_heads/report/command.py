"""The command line of the report: files in, one file out, one line for a mistake."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ssl_heads.metrics._optional import optional
from ssl_heads.report.report import report


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """What the user asks for."""
    parser = argparse.ArgumentParser(prog="python -m ssl_heads", description="Look at what dimensions mean.")
    commands = parser.add_subparsers(dest="command", required=True)
    page = commands.add_parser("report", help="one HTML file about the dimensions of an embedding")
    add = page.add_argument
    add(
        "embeddings",
        type=Path,
        help="npz with `embeddings` and on request labels, texts, images, files, importance; or npy",
    )
    add("-o", "--output", type=Path, default=Path("report.html"))
    add("--images", type=Path, help="a folder, or an npy file")
    add("--labels", type=Path, help="npy, or text with one label a line")
    add("--texts", type=Path, help="text with one line a sample, or npy")
    add("--class-names", type=Path, help="text with one name a line, of class 0, 1, ...")
    add("--importance", type=Path, help="npy")
    add("--other-seed", type=Path, help="npz or npy, the same samples from another seed")
    add(
        "--control",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="embeddings to compare with; repeatable",
    )
    add("--title", default="What the dimensions mean")
    add("--max-megabytes", type=float, default=25.0)
    add("--thumbnail", type=int, default=64, help="width and height of an image at most")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the report; a mistake ends the program in one line."""
    args = arguments(argv)
    try:
        made = run(args)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    lines = [*made.sentences, *made.notices, f"{made.path}: {made.megabytes:.1f} MB"]
    sys.stdout.write("\n".join(lines) + "\n")


def run(args: argparse.Namespace) -> Any:
    """Files named on the command line come before arrays of the npz."""
    content = arrays(args.embeddings)
    if "embeddings" not in content:
        raise ValueError(
            f"{args.embeddings} must hold the array `embeddings`; it holds {', '.join(content) or 'nothing'}"
        )
    files = content.get("files")
    folder = args.images if args.images is not None and args.images.is_dir() else None
    images: Any = content.get("images") if args.images is None else folder or one(args.images)
    if files is not None:
        images = [(folder or args.embeddings.parent) / str(name) for name in files]
    texts = args.texts and lines(args.texts)
    if texts is None and "texts" in content:
        texts = [str(text) for text in content["texts"]]
    return report(
        content["embeddings"],
        args.output,
        images=images,
        labels=lines(args.labels) if args.labels else content.get("labels"),
        texts=texts,
        class_names=lines(args.class_names) if args.class_names else content.get("class_names"),
        importance=one(args.importance) if args.importance else content.get("importance"),
        other_seed=one(args.other_seed) if args.other_seed else None,
        controls=controls(args.control),
        title=args.title,
        max_megabytes=args.max_megabytes,
        thumbnail=args.thumbnail,
    )


def controls(named: list[str]) -> dict[str, Any]:
    """Embeddings by the name before the first equals sign."""
    pairs = [text.partition("=") for text in named]
    wrong = [text for text, (name, sign, file) in zip(named, pairs, strict=True) if not (name and sign and file)]
    if wrong:
        raise ValueError(f"--control takes NAME=FILE, for instance untrained=untrained.npz; got {wrong[0]}")
    return {name: one(Path(file)) for name, _, file in pairs}


def arrays(path: Path) -> Mapping[str, Any]:
    """The arrays of an npz, those of a dictionary that torch saved, or one array as `embeddings`."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist" if not path.exists() else f"{path} is a folder; name a file")
    try:
        if path.suffix in (".pt", ".pth"):
            content = torch.load(path, map_location="cpu", weights_only=True)
        else:
            content = optional("numpy", "numpy", "reading npz and npy files").load(path, allow_pickle=False)
            content = {name: content[name] for name in content.files} if hasattr(content, "files") else content
    except ImportError:
        raise
    except Exception as error:  # an empty file, half a file and a foreign one each raise something else
        raise ValueError(f"{path} cannot be read as npz, npy or pt: {str(error).splitlines()[0]}") from error
    return content if isinstance(content, Mapping) else {"embeddings": content}


def one(path: Path) -> Any:
    """The array of a file; of several, `embeddings`."""
    content = arrays(path)
    if "embeddings" not in content and len(content) != 1:
        raise ValueError(f"{path} must hold one array, or one named `embeddings`; it holds {', '.join(content)}")
    return content["embeddings"] if "embeddings" in content else next(iter(content.values()))


def lines(path: Path) -> Any:
    """An array, or the lines of a text: as integers if all are."""
    if path.suffix in (".npy", ".npz", ".pt", ".pth"):
        return one(path)
    try:
        text = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as text: {error}") from error
    whole = all(line.strip().removeprefix("-").isdigit() for line in text)
    return [int(line) for line in text] if text and whole else text
