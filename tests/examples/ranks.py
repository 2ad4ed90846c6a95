"""What each rank of the distributed examples does in a test; the ranks have folders of their own."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))


def train(folders: list[Path], images: int, options: list[str]) -> list[torch.Tensor]:
    """The parameters after `distributed_simclr.train` on images that follow from their number."""
    import distributed_simclr as example

    rank, world = dist.get_rank(), dist.get_world_size()
    args = example.parse([*options, "--checkpoint", str(folders[rank] / "run.pt")])
    pixels = torch.randint(256, (images, 1, 12, 12), generator=torch.Generator().manual_seed(0)).byte()
    example.check(images, args, world)
    return [p.detach() for p in example.train(pixels, args, rank, world, "cpu").parameters()]


def load(folders: list[Path], options: list[str]) -> None:
    """What `distributed_simclr.main` does before it trains."""
    import distributed_simclr as example

    args = example.parse([*options, "--data", f"folder:{folders[dist.get_rank()]}", "--image-size", "8"])
    train, _ = example.on_every_rank(lambda: example.load_and_check(args, dist.get_world_size()))
    example.equal_on_every_rank(len(train.images))
