"""Image-caption pairs for the CLIP example: OpenMoji, a CSV, a folder or a WebDataset, their images unread."""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import random
import sys
import tarfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import openmoji
from images import IMAGES, image_files
from PIL import Image
from torchvision.transforms.functional import to_pil_image


class Pair(NamedTuple):
    """An image, unread, and what is said about it."""

    place: str  # where the image lies, as it was given
    image: str  # the file itself, whatever link or path leads to it: equal for all captions of one image
    read: Callable[[], Image.Image]
    caption: str
    concept: str  # all pairs of a concept are held out together, and no two of them meet as negatives
    group: str  # the class of zero-shot classification, "" if there is none


class Columns(NamedTuple):
    """Of a CSV; what is None is found in its header."""

    image: str | None = None
    caption: str | None = None
    separator: str | None = None


DETECTED = Columns()
IMAGE_COLUMNS, CAPTION_COLUMNS, SEPARATORS = ("image", "filepath"), ("caption", "title"), (",", "\t", ";")


def load(source: str, size: int, limit: int | None, columns: Columns = DETECTED) -> list[Pair]:
    """All pairs of `openmoji`, `csv:PATH`, `folder:PATH` or `tar:PATTERN`, or the first `limit`."""
    kind, _, where = source.partition(":")
    readers: dict[str, Callable[[str], list[Pair]]] = {
        "csv": partial(from_csv, columns=columns),
        "folder": from_folder,
        "tar": from_tar,
    }
    if any(columns) and kind != "csv":
        raise ValueError(f"--csv-img-key, --csv-caption-key and --csv-separator are of csv:PATH, not of {source!r}")
    if source == "openmoji":
        try:
            return one_concept_an_image(from_openmoji(openmoji.pairs(size, limit=limit)))
        except ImportError as error:
            raise ValueError(str(error)) from error
    if kind not in readers or not where:
        raise ValueError(f"--data must be openmoji, csv:PATH, folder:PATH or tar:PATTERN; got {source!r}")
    return one_concept_an_image(readers[kind](where)[:limit])


def one_concept_an_image(pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs that share their image or their concept, and what these are chained to, get the concept of the first."""
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root(node: tuple[str, str]) -> tuple[str, str]:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = node = parent[parent[node]]
        return node

    for pair in pairs:
        parent[root(("image", pair.image))] = root(("concept", pair.concept))
    first: dict[tuple[str, str], str] = {}
    return [p._replace(concept=first.setdefault(root(("concept", p.concept)), p.concept)) for p in pairs]


def from_openmoji(drawn: openmoji.Pairs) -> list[Pair]:
    columns = zip(drawn.names, drawn.concepts, drawn.groups, strict=True)
    return [
        Pair(f"openmoji: {name}", name, partial(to_pil_image, drawn.images[i]), name, concept, group)
        for i, (name, concept, group) in enumerate(columns)
    ]


# ------------------------------------------------------------------------------------------------------------ layouts
def from_csv(path: str, columns: Columns = DETECTED) -> list[Pair]:
    """A column of images (paths, from the CSV's folder on) and one of captions; concept and group if you have them."""
    text = text_of(path)
    image_name, caption_name, separator = named(text[:65536], columns)
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    pairs, line = [], 0
    try:
        header = rows.fieldnames or ()
        missing = [name for name in (image_name, caption_name) if name not in header]
        if missing:
            options = "--csv-img-key, --csv-caption-key and --csv-separator name others"
            raise ValueError(f"{path}: no column {' and '.join(missing)}; it has {rows.fieldnames}; {options}")
        twice = [name for name in (image_name, caption_name) if list(header).count(name) > 1]
        if twice:
            raise ValueError(f"{path}: {header} name {' and '.join(twice)} twice; give each column a name of its own")
        line = rows.line_num
        for row in rows:
            line = rows.line_num
            if None in row:
                raise ValueError(f"{path}, line {line}: more fields than columns; quote a caption with a {separator!r}")
            image, caption = (row[image_name] or "").strip(), (row[caption_name] or "").strip()
            if not image or not caption:
                raise ValueError(f"{path}, line {line}: image or caption is empty")
            place = os.path.normpath(Path(path).parent / image)
            pairs.append(pair(place, os.path.realpath(place), partial(Image.open, place), caption, row))
    except csv.Error as error:  # an open quote takes all that follows for one field
        raise ValueError(
            f"{path}, line {line + 1}: {error}; is a quote open, or not doubled inside a field?"
        ) from error
    return some(pairs, path, "lines")


def text_of(path: str) -> str:
    try:
        content = Path(path).read_bytes().removeprefix(codecs.BOM_UTF8)
        return content.decode()
    except OSError as error:
        raise ValueError(f"{path}: {error}") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: {error}; save the file as UTF-8") from error


def named(start: str, columns: Columns) -> tuple[str, str, str]:
    """The names of both columns and the separator: as told, or as the header has them."""
    header = next(iter(start.splitlines()), "")
    separators = [columns.separator] if columns.separator else sorted(SEPARATORS, key=header.count, reverse=True)
    choices = []
    for separator in separators:
        names = next(csv.reader([header], delimiter=separator), [])
        image = columns.image or next((name for name in IMAGE_COLUMNS if name in names), "image")
        caption = columns.caption or next((name for name in CAPTION_COLUMNS if name in names), "caption")
        choices.append((image in names and caption in names, image, caption, separator))
    _, image, caption, separator = max(choices, key=lambda choice: choice[0])  # the first of those that fit
    return image, caption, separator


def from_folder(path: str) -> list[Pair]:
    """Images at any depth. A caption is the .txt beside it, else the file's name; a subfolder's name is the group."""
    root, pairs = Path(path), []
    texts: dict[Path, dict[str, Path]] = {}  # of every folder, by the name without the extension, which may be .TXT
    for image in image_files(root):
        if image.parent not in texts:
            texts[image.parent] = {p.stem: p for p in image.parent.iterdir() if p.suffix.lower() == ".txt"}
        text = texts[image.parent].get(image.stem)
        try:
            caption = text.read_text(encoding="utf-8-sig") if text else image.stem.replace("_", " ")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{text}: {error}") from error
        if not caption.strip():
            raise ValueError(f"{text}: the caption is empty")
        group = "" if image.parent == root else image.parent.name
        pairs.append(pair(str(image), os.path.realpath(image), partial(Image.open, image), caption, {"group": group}))
    return some(pairs, path, f"images ({', '.join(sorted(IMAGES))})")


def from_tar(pattern: str) -> list[Pair]:
    """WebDataset shards: an image and NAME.txt or NAME.json with caption, and perhaps concept and group."""
    shards = sorted(Path(pattern).parent.glob(Path(pattern).name))
    pairs, images, silent, dotted = [], 0, [], []
    for shard in shards:
        for name, members in samples_of(shard).items():
            image = next((m for extension, m in members.items() if extension in IMAGES), None)
            if image is None:
                dotted += [f"{shard}:{m.name}" for extension, m in members.items() if Path(extension).suffix in IMAGES]
                continue
            captions, columns = words(shard, name, members)
            place, read = f"{shard}:{image.name}", partial(image_in, shard, image)
            pairs += [pair(place, f"{shard.resolve()}:{image.name}", read, one, columns) for one in captions]
            images += 1
            silent += [] if captions else [place]
    if dotted:
        rule = "what follows the first dot of a name is its extension"
        print(f"skipped {len(dotted)} images, such as {dotted[0]}: {rule}", file=sys.stderr)
    if silent:
        what = f"skipped {len(silent)} of {images} images, whose caption is null or empty: {silent[0]}"
        print(what if len(silent) == 1 else f"{what} to {silent[-1]}", file=sys.stderr)
    return some(pairs, pattern, "images in .tar files" if not images else "captions in .tar files")


def samples_of(shard: Path) -> dict[str, dict[str, tarfile.TarInfo]]:
    """The members of every sample by their extensions; an extension begins at the first dot, as WebDataset's does.

    Hidden members are left out: macOS puts ._a.png beside a.png.
    """
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:  # a compressed shard cannot be read from the middle
            for member in filter(tarfile.TarInfo.isfile, tar):
                folder, _, file = member.name.rpartition("/")
                name, _, extension = file.partition(".")
                if not any(part.startswith(".") for part in Path(member.name).parts):
                    samples.setdefault(f"{folder}/{name}".lstrip("/"), {})[f".{extension.lower()}"] = member
    except (OSError, tarfile.TarError) as error:
        raise ValueError(f"{shard}: {error}") from error
    return samples


def words(shard: Path, name: str, members: dict[str, tarfile.TarInfo]) -> tuple[list[str], dict[str, str]]:
    """Captions of a sample, from .txt if it says something, else from .json; concept and group, from .json alone."""
    given: list[Any] = []
    columns: dict[str, str] = {}
    try:
        if ".json" in members:
            content = json.loads(member_of(shard, members[".json"]))
            content = {} if content is None else content
            if not isinstance(content, dict):
                raise ValueError(f'the .json must hold an object such as {{"caption": "a cat"}}, got {content!r:.60}')
            columns = {key: str(content[key]) for key in ("concept", "group") if content.get(key) is not None}
            if "caption" in content:
                given = content["caption"] if isinstance(content["caption"], list) else [content["caption"]]
                given = given or [None]
        if ".txt" in members:
            text = member_of(shard, members[".txt"]).decode("utf-8-sig")
            given = [text] if text.strip() or not given else given
    except ValueError as error:
        raise ValueError(f"{shard}:{name}: {error}") from error
    if not given:
        raise ValueError(f"{shard}:{name}: no caption; put it into {name}.txt, or into {name}.json as caption")
    given = [None if caption != caption else caption for caption in given]  # NaN is pandas' null
    strange = [caption for caption in given if not isinstance(caption, str | None)]
    if strange:
        raise ValueError(f"{shard}:{name}: a caption is a text, or a list of texts; got {strange[0]!r}")
    return list(dict.fromkeys(caption for caption in given if caption and caption.strip())), columns


def member_of(shard: Path, member: tarfile.TarInfo) -> bytes:
    """Read where the index says; a tar file has none of its own."""
    with shard.open("rb") as file:
        file.seek(member.offset_data)
        content = file.read(member.size)
    if len(content) < member.size:
        raise ValueError(f"{shard} ends inside {member.name}: it is cut off")
    return content


def image_in(shard: Path, member: tarfile.TarInfo) -> Image.Image:
    return Image.open(io.BytesIO(member_of(shard, member)))


def pair(place: str, image: str, read: Callable[[], Image.Image], caption: str, row: dict[str, str]) -> Pair:
    caption = " ".join(caption.split())
    concept, group = ((row.get(name) or "").strip() for name in ("concept", "group"))
    return Pair(place, image, read, caption, concept or caption, group)


def some(pairs: list[Pair], place: str, what: str) -> list[Pair]:
    if not pairs:
        raise ValueError(f"{place}: no {what}")
    return pairs


# -------------------------------------------------------------------------------------------------------- the split
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
