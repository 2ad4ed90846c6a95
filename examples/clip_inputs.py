"""What the towers of the CLIP example are fed with: images that are read when needed, or their frozen stems, stored."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from clip_data import Pair
from clip_gradient import Precision
from clip_towers import Towers
from common import contents_of, read, write
from einops import rearrange
from images import square
from torch import Tensor, nn
from tqdm import tqdm

Plan = Iterable[tuple[Sequence[int], int | None]]  # batches of indices, each with the seed of its views; None: no view
Batch = tuple[list[int], Tensor, Tensor]  # the indices that could be read, and what the towers continue from


READER = 2  # what is stored under another number was read in another way


class Unreadable(ValueError):
    """A whole batch without one image: it is not a file that is broken."""


class Reader:
    """Decodes images in threads, a batch ahead, and keeps account of those that it could not read."""

    def __init__(self, pairs: Sequence[Pair], size: int, threads: int = 4) -> None:
        self.pairs, self.size = pairs, size
        self.skipped: dict[str, str] = {}
        self.pool = ThreadPoolExecutor(threads)

    def batches(self, plan: Plan) -> Iterator[tuple[list[int], Tensor, int | None]]:
        """The indices of every batch whose images could be read, the images (n, 3, size, size), and the seed."""
        waiting: list[tuple[Sequence[int], list[Future[Tensor | None]], int | None]] = []
        for index, seed in plan:
            waiting.append((index, [self.pool.submit(self.decode, self.pairs[i]) for i in index], seed))
            if len(waiting) > 1:
                yield self.collected(*waiting.pop(0))
        for batch in waiting:
            yield self.collected(*batch)

    def collected(
        self, index: Sequence[int], futures: list[Future[Tensor | None]], seed: int | None
    ) -> tuple[list[int], Tensor, int | None]:
        read = {i: image for i, future in zip(index, futures, strict=True) if (image := future.result()) is not None}
        if not read:
            places = [self.pairs[i].place for i in index]
            raise Unreadable(
                f"none of the {len(places)} images {places[0]} to {places[-1]} can be read: {self.skipped[places[0]]}"
            )
        return list(read), torch.stack(list(read.values())), seed

    def decode(self, pair: Pair) -> Tensor | None:
        try:
            with pair.read() as image:
                return square(image, self.size)
        except Exception as error:  # decoders raise whatever they like; one broken file must not end a run of hours
            self.skipped[pair.place] = f"{type(error).__name__}: {error}".splitlines()[0]
            return None

    def report(self) -> str:
        """How many images were skipped, and which."""
        lines = [f"  {place} ({why})" for place, why in sorted(self.skipped.items())]
        images = len({pair.place for pair in self.pairs})
        return "\n".join([f"skipped {len(lines)} of {images} images that could not be read:", *lines])


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random view of every image, 0 to 255: turned, scaled, shifted, its colours changed.

    Not mirrored: captions say left and right. What lies outside the image is white.
    """
    n = len(images)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator).to(images.device)

    angle, zoom = uniform(-0.25, 0.25, 1, 1), uniform(0.75, 1.15, 1, 1)
    row_x = torch.cat([zoom * angle.cos(), -zoom * angle.sin(), uniform(-0.12, 0.12, 1, 1)], dim=2)
    row_y = torch.cat([zoom * angle.sin(), zoom * angle.cos(), uniform(-0.12, 0.12, 1, 1)], dim=2)
    grid = nn.functional.affine_grid(torch.cat([row_x, row_y], dim=1), list(images.shape), align_corners=False)
    ink = nn.functional.grid_sample(255 - images, grid, align_corners=False)
    return (255 - ink * uniform(0.8, 1.2, 1, 1, 1) * uniform(0.9, 1.1, 3, 1, 1)).clamp(0, 255)


class Streamed:
    """Reads and augments images when they are needed, and runs the towers' stems on them."""

    def __init__(
        self, pairs: Sequence[Pair], towers: Towers, micro_batch: int, device: str, precision: Precision
    ) -> None:
        self.towers, self.micro_batch, self.device, self.precision = towers, micro_batch, device, precision
        self.reader = Reader(pairs, towers.size)
        captions = [pair.caption for pair in pairs]
        self.tokens, cut = towers.tokenize(captions), towers.cut(captions)
        if cut:
            read = self.tokens.shape[1]
            print(f"{cut} of {len(captions)} captions are longer than the {read} tokens that are read", file=sys.stderr)

    def batches(self, plan: Plan) -> Iterator[Batch]:
        for kept, image in self.images(plan):
            yield kept, image, self.text(self.tokens[kept])

    @torch.no_grad()
    def images(self, plan: Plan) -> Iterator[tuple[list[int], Tensor]]:
        for kept, images, seed in self.reader.batches(plan):
            generator = None if seed is None else torch.Generator().manual_seed(seed)
            hidden = []
            for part in images.split(self.micro_batch):
                pixels = part.to(self.device).float()
                with self.precision():
                    hidden.append(self.towers.image.stem(pixels if generator is None else augment(pixels, generator)))
            yield kept, torch.cat(hidden)

    @torch.no_grad()
    def text(self, tokens: Tensor) -> Tensor:
        with self.precision():
            return torch.cat([self.towers.text.stem(t.to(self.device)) for t in tokens.split(self.micro_batch)])


class Stored:
    """What the frozen stems make of all pairs, and of some views of every image: then an epoch takes seconds."""

    def __init__(self, kept: list[int], image: Tensor, text: Tensor, device: str) -> None:
        self.image, self.words, self.device = image, text, device  # (views, n, ...), the first view is the image itself
        self.row = {i: row for row, i in enumerate(kept)}

    def batches(self, plan: Plan) -> Iterator[Batch]:
        for index, seed in plan:
            kept = [i for i in index if i in self.row]
            rows = torch.tensor([self.row[i] for i in kept], dtype=torch.long)
            view = torch.zeros_like(rows)
            if seed is not None:
                view = torch.randint(len(self.image), rows.shape, generator=torch.Generator().manual_seed(seed))
            yield kept, self.image[view, rows].to(self.device).float(), self.words[rows].to(self.device).float()


Source = Streamed | Stored


def fingerprint(tower: nn.Module) -> str:
    """Changes with the weights of a tower."""
    sums = [float(x.double().sum()) for x in tower.state_dict().values() if x.is_floating_point()]
    return hashlib.sha256(repr(sums).encode()).hexdigest()


def version(place: str) -> tuple[int, int] | None:
    """Changes with the file that a pair comes from, an image or a shard."""
    for path in (Path(place), Path(place.rpartition(":")[0] or place)):
        if path.is_file():
            return path.stat().st_mtime_ns, path.stat().st_size
    return None


def stored(streamed: Streamed, views: int, cache: Path, key: str) -> Stored:
    """Compute what is stored, or take it from an earlier run with the same key."""
    path = cache / f"stems-{hashlib.sha256(key.encode()).hexdigest()[:16]}.pt"
    if not path.exists():
        write(stems(streamed, views), path)
    content = read(path)
    with contents_of(path):
        streamed.reader.skipped.update(content["skipped"])
        return Stored(content["kept"], content["image"], content["text"], streamed.device)


def stems(streamed: Streamed, views: int) -> dict[str, object]:
    everything = range(len(streamed.reader.pairs))
    chunks = [everything[i : i + streamed.micro_batch] for i in range(0, len(everything), streamed.micro_batch)]
    seeds = [[None] * len(chunks), *([v * len(chunks) + c for c in range(len(chunks))] for v in range(views))]
    plan = [(chunk, seed) for view in seeds for chunk, seed in zip(chunks, view, strict=True)]
    kept, images = [], []
    for index, image in tqdm(streamed.images(plan), "frozen stems", len(plan), unit="batch", leave=False):
        kept += index
        images.append(image.half().cpu())
    n = len(kept) // (views + 1)  # an image that cannot be read is missing from every view
    image = rearrange(torch.cat(images), "(views n) ... -> views n ...", n=n)
    text = streamed.text(streamed.tokens[kept[:n]]).half().cpu()
    return {"kept": kept[:n], "image": image, "text": text, "skipped": streamed.reader.skipped}
