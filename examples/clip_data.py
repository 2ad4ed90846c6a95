"""Image-caption pairs for the CLIP example: OpenMoji, a CSV, a folder or a WebDataset, their images unread."""

from __future__ import annotations

import csv
import io
import json
import random
import tarfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import openmoji
from PIL import Image
from torchvision.transforms.functional import to_pil_image

IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


class Pair(NamedTuple):
    """An image, unread, and what is said about it."""

    place: str  # where the image lies, for messages
    read: Callable[[], Image.Image]
    caption: str
    concept: str  # all pairs of a concept are held out together
    group: str  # the class of zero-shot classification, "" if there is none


def load(source: str, size: int, limit: int | None) -> list[Pair]:
    """All pairs of `openmoji`, `csv:PATH`, `folder:PATH` or `tar:PATTERN`, or the first `limit`."""
    kind, _, where = source.partition(":")
    readers: dict[str, Callable[[str], list[Pair]]] = {"csv": from_csv, "folder": from_folder, "tar": from_tar}
    if source == "openmoji":
        try:
            return from_openmoji(openmoji.pairs(size, limit=limit))
        except ImportError as error:
            raise ValueError(str(error)) from error
    if kind not in readers or not where:
        raise ValueError(f"--data must be openmoji, csv:PATH, folder:PATH or tar:PATTERN; got {source!r}")
    return readers[kind](where)[:limit]


def from_openmoji(drawn: openmoji.Pairs) -> list[Pair]:
    columns = zip(drawn.names, drawn.concepts, drawn.groups, strict=True)
    return [
        Pair(f"openmoji: {name}", partial(to_pil_image, drawn.images[i]), name, concept, group)
        for i, (name, concept, group) in enumerate(columns)
    ]


def from_csv(path: str) -> list[Pair]:
    """Columns image (a path, from the CSV's folder on) and caption; concept and group if you have them."""
    pairs = []
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            missing = {"image", "caption"} - set(rows.fieldnames or ())
            if missing:
                raise ValueError(f"{path}: no column {' and '.join(sorted(missing))}; it has {rows.fieldnames}")
            for row in rows:
                if None in row:
                    raise ValueError(
                        f"{path}, line {rows.line_num}: more fields than columns; quote a caption with a comma"
                    )
                if not (row["image"] or "").strip() or not (row["caption"] or "").strip():
                    raise ValueError(f"{path}, line {rows.line_num}: image or caption is empty")
                image = Path(path).parent / row["image"].strip()
                pairs.append(pair(str(image), partial(Image.open, image), row))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: {error}") from error
    return some(pairs, path, "lines")


def from_folder(path: str) -> list[Pair]:
    """Images at any depth. A caption is the .txt beside it, else the file's name; a subfolder's name is the group."""
    root, pairs = Path(path), []
    for image in sorted(p for p in root.rglob("*") if p.suffix.lower() in IMAGES):
        text = image.with_suffix(".txt")
        try:
            caption = text.read_text(encoding="utf-8-sig") if text.exists() else image.stem.replace("_", " ")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{text}: {error}") from error
        if not caption.strip():
            raise ValueError(f"{text}: the caption is empty")
        group = "" if image.parent == root else image.parent.name
        pairs.append(pair(str(image), partial(Image.open, image), {"caption": caption, "group": group}))
    return some(pairs, path, f"images ({', '.join(sorted(IMAGES))})")


def from_tar(pattern: str) -> list[Pair]:
    """WebDataset shards: an image and NAME.txt or NAME.json with caption, and perhaps concept and group."""
    shards = sorted(Path(pattern).parent.glob(Path(pattern).name))
    pairs = []
    for shard in shards:
        samples: dict[str, dict[str, tarfile.TarInfo]] = {}
        try:
            with tarfile.open(shard, "r:") as tar:  # a compressed shard cannot be read from the middle
                for member in filter(tarfile.TarInfo.isfile, tar):
                    name, _, extension = member.name.rpartition(".")
                    samples.setdefault(name, {})[f".{extension.lower()}"] = member
        except (OSError, tarfile.TarError) as error:
            raise ValueError(f"{shard}: {error}") from error
        for name, members in samples.items():
            image = next((m for extension, m in members.items() if extension in IMAGES), None)
            if image is not None:
                pairs.append(
                    pair(f"{shard}:{image.name}", partial(image_in, shard, image), words(shard, name, members))
                )
    return some(pairs, pattern, "images in .tar files")


def words(shard: Path, name: str, members: dict[str, tarfile.TarInfo]) -> dict[str, str]:
    found: dict[str, str] = {}
    try:
        if ".json" in members:
            content = json.loads(member_of(shard, members[".json"]))
            found = {key: str(content[key]) for key in ("caption", "concept", "group") if key in content}
        elif ".txt" in members:
            found = {"caption": member_of(shard, members[".txt"]).decode()}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{shard}:{name}: {error}") from error
    if not found.get("caption", "").strip():
        raise ValueError(f"{shard}:{name}: no caption; put it into {name}.txt, or into {name}.json as caption")
    return found


def member_of(shard: Path, member: tarfile.TarInfo) -> bytes:
    """Read where the index says; a tar file has none of its own."""
    with shard.open("rb") as file:
        file.seek(member.offset_data)
        return file.read(member.size)


def image_in(shard: Path, member: tarfile.TarInfo) -> Image.Image:
    return Image.open(io.BytesIO(member_of(shard, member)))


def pair(place: str, read: Callable[[], Image.Image], row: dict[str, str]) -> Pair:
    caption = " ".join(row["caption"].split())
    return Pair(place, read, caption, (row.get("concept") or "").strip() or caption, (row.get("group") or "").strip())


def some(pairs: list[Pair], place: str, what: str) -> list[Pair]:
    if not pairs:
        raise ValueError(f"{place}: no {what}")
    return pairs


def hold_out(pairs: Sequence[Pair], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of training and of held-out pairs; a share of the concepts is held out, with all their pairs."""
    concepts = sorted({pair.concept for pair in pairs})
    number = round(share * len(concepts))
    if not 2 <= number <= len(concepts) - 2:
        raise ValueError(f"a share of {share} of {len(concepts)} concepts leaves fewer than two to train or to test on")
    held_out = set(random.Random(seed).sample(concepts, number))
    index: tuple[list[int], list[int]] = ([], [])
    for i, one in enumerate(pairs):
        index[one.concept in held_out].append(i)
    return index


def one_a_concept(pairs: Sequence[Pair], index: Iterable[int]) -> list[int]:
    """The first pair of every concept."""
    first: dict[str, int] = {}
    for i in index:
        first.setdefault(pairs[i].concept, i)
    return list(first.values())
