"""Images as sheets of thumbnails: of arrays, of files, and of those that cannot be read."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssl_heads._images import as_images

COLUMNS = 16  # of a sheet, and its rows
QUALITY = 75
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif"}


class Thumbnails(NamedTuple):
    """The images that the page holds.

    Attributes:
        slot: Shape (n,), the place of a sample's thumbnail, counted over all sheets; -1 for none.
        sheets: Each a WebP file of 16 thumbnails a row.
        rows: The rows of each sheet.
        side: Width and height of a thumbnail.
        unreadable: Names of the files that could not be read, each with the reason.
        left_out: The number of samples without a thumbnail for want of space.
    """

    slot: Tensor
    sheets: list[bytes]
    rows: list[int]
    side: int
    unreadable: list[str]
    left_out: int


class Source:
    """The images of all samples: an array, or files that are opened one at a time.

    Args:
        images: An array as `ssl_heads.plots.top_activating` takes it, a folder, or one path a sample.
        count: The number of samples.
    """

    def __init__(self, images: Any, count: int) -> None:
        self.pillow = _pillow()
        self.unreadable: list[str] = []
        self.files = _files(images, count)
        if self.files is None:
            self.array = images
            if len(images) != count:
                raise ValueError(f"images must hold one for each of the {count} rows of embeddings, got {len(images)}")
            even = torch.linspace(0, count - 1, min(count, 512), device="cpu").long().tolist()
            _, self.white = as_images(self._rows(even))

    def _rows(self, index: list[int]) -> Any:
        return [self.array[i] for i in index] if isinstance(self.array, list | tuple) else self.array[index]

    def open(self, index: list[int]) -> list[Any]:
        """Images of Pillow in RGB, None for what cannot be read."""
        if self.files is not None:
            return [self._read(self.files[i]) for i in index]
        pixels, _ = as_images(self._rows(index))
        values = (pixels.cpu().float() / self.white).clamp(0, 1).mul(255).round().byte()
        values = values.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous()
        return [self.pillow.frombytes("RGB", (v.shape[1], v.shape[0]), v.numpy().tobytes()) for v in values]

    def _read(self, path: Path) -> Any:
        try:
            with self.pillow.open(path) as image:
                image.draft("RGB", (512, 512))
                return self._upright_on_white(image)
        except Exception as error:  # decoders raise what they like, and one bad file must not end a report
            self.unreadable.append(f"{path.name} ({type(error).__name__})")
            return None

    def _upright_on_white(self, image: Any) -> Any:
        """As a viewer shows a file: turned as a camera notes, and white where transparent."""
        turned = import_module("PIL.ImageOps").exif_transpose(image)
        if "A" not in turned.getbands() and "transparency" not in turned.info:
            return turned.convert("RGB")
        drawing = turned.convert("RGBA")
        white = self.pillow.new("RGBA", drawing.size, "white")
        return self.pillow.alpha_composite(white, drawing).convert("RGB")


def thumbnails(source: Source, wanted: Iterable[int], count: int, side: int, budget: float) -> Thumbnails:
    """Sheets of the wanted samples, the first first, until the budget of bytes is spent."""
    order = list(dict.fromkeys(i for i in wanted if i >= 0))
    slot, tried, room = torch.full((count,), -1, device="cpu"), 0, budget
    sheets: list[bytes] = []
    rows: list[int] = []
    while tried < len(order) and room > 0:
        index = order[tried : tried + COLUMNS**2]
        tried += len(index)
        opened = [(i, image) for i, image in zip(index, source.open(index), strict=True) if image is not None]
        if opened and not sheets:
            side = min(side, max(opened[0][1].size))
        sheet = _sheet(source.pillow, opened, side)
        whole = len(sheet) <= room
        if not whole:
            # one row less than the proportion says, because a smaller sheet compresses worse
            opened = opened[: max(int(len(opened) * room / len(sheet)) // COLUMNS - 1, 0) * COLUMNS]
            sheet = _sheet(source.pillow, opened, side)
        if opened and len(sheet) <= room:
            for place, (i, _) in enumerate(opened, start=len(sheets) * COLUMNS**2):
                slot[i] = place
            sheets.append(sheet)
            rows.append(-(-len(opened) // COLUMNS))
        room = room - len(sheet) if whole else 0
    bad, shown = source.unreadable, int((slot >= 0).sum())
    if tried and len(bad) == tried:
        raise ValueError(f"none of the {tried} images that were opened could be read; the first: {bad[0]}")
    return Thumbnails(slot, sheets, rows, side, bad, count - shown - len(bad))


def _sheet(pillow: Any, opened: Sequence[tuple[int, Any]], side: int) -> bytes:
    """A WebP file; an image that is not square keeps its proportions."""
    rows = max(-(-len(opened) // COLUMNS), 1)
    sheet = pillow.new("RGB", (COLUMNS * side, rows * side), (128, 128, 128))
    for place, (_, image) in enumerate(opened):
        scale = side / max(image.size)
        size = [max(1, round(length * scale)) for length in image.size]
        small = image if list(image.size) == size else image.resize(size, pillow.Resampling.LANCZOS)
        top, left = divmod(place, COLUMNS)
        sheet.paste(small, (left * side + (side - size[0]) // 2, top * side + (side - size[1]) // 2))
    buffer = io.BytesIO()
    sheet.save(buffer, "WEBP", quality=QUALITY, method=4)
    return buffer.getvalue()


def _files(images: Any, count: int) -> list[Path] | None:
    """One path a sample; None for images that are no files."""
    if isinstance(images, str | Path):
        return _in_folder(Path(images), count)
    if isinstance(images, list | tuple) and len(images) > 0 and isinstance(images[0], str | Path):
        if len(images) != count:
            raise ValueError(f"images must name one file for each of the {count} rows of embeddings, got {len(images)}")
        return [Path(path) for path in images]
    return None


def _in_folder(folder: Path, count: int) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(f"images must be a folder, an array or a list of files; {folder} is no folder")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if len(files) != count:
        raise ValueError(
            f"{folder} holds {len(files):,} images and embeddings {count:,} rows: which belongs to which is unknown. "
            "Name the file of each row, in `files` of the npz or as a list"
        )
    natural = sorted(files, key=lambda path: [int(part) if part.isdigit() else part for part in _parts(path)])
    if natural != files:
        i = next(i for i, (a, b) in enumerate(zip(files, natural, strict=True)) if a != b)
        raise ValueError(
            f"the order of the images in {folder} is ambiguous: {files[i].name} or {natural[i].name} may be image {i}. "
            "Name the file of each row, in `files` of the npz or as a list"
        )
    return files


def _parts(path: Path) -> list[str]:
    return re.split(r"(\d+)", str(path))


def _pillow() -> Any:
    try:
        return import_module("PIL.Image")
    except ImportError as error:
        raise ImportError("a report with images needs Pillow: pip install 'ssl-heads[report]'") from error
