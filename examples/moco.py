"""MoCo v2 with a non-negative head, from scratch: momentum encoder, queue, shuffled batch norm.

torchrun --nproc-per-node 2 examples/moco.py --checkpoint moco.pt      # one queue, filled by all processes
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from pathlib import Path

import torch
from common import (
    WIDTH,
    check_batch,
    contents_of,
    digest,
    equal_on_every_rank,
    from_rank_0,
    on_every_rank,
    one_line_errors,
    process_group,
    same_settings,
    small_convnet,
    write,
)
from images import Split, augment, load, pixels
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssl_heads import InfoNCELoss, MemoryQueue, NonNegProjection, metrics
from ssl_heads.distributed import all_gather_rows
from ssl_heads.optim import param_groups


class Encoder(nn.Sequential):
    """In training each part of a batch is normalised by its own statistics, as if it had a device of its own."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([super(Encoder, self).forward(part) for part in images.chunk(1 + self.training)])


class MoCo(nn.Module):
    """An encoder of queries, one of keys that follows it slowly, and the keys of past batches."""

    def __init__(self, channels: int, queue_size: int) -> None:
        super().__init__()
        self.query_encoder = Encoder(small_convnet(channels), NonNegProjection(WIDTH, 2 * WIDTH, 128))
        self.key_encoder = copy.deepcopy(self.query_encoder).requires_grad_(False)
        self.queue = MemoryQueue(queue_size, 128)

    @torch.no_grad()
    def keys(self, images: Tensor, order: Tensor, own: slice, momentum: float = 0.99) -> Tensor:
        """Keys of all ranks, encoded in other company than the queries: shared statistics would give the pairs away."""
        for slow, fast in zip(self.key_encoder.parameters(), self.query_encoder.parameters(), strict=True):
            slow.lerp_(fast, 1 - momentum)
        return all_gather_rows(self.key_encoder(all_gather_rows(images)[order][own]))[order.argsort()]


def load_and_check(args: argparse.Namespace, world: int) -> tuple[Split, Split]:
    for name in ("epochs", "queue", "temperature"):
        if not 0 < getattr(args, name) < math.inf:
            raise ValueError(f"--{name} must be positive, got {getattr(args, name)}")
    if args.batch_size % world or args.batch_size < 4 * world:  # batch norm needs two images in each half of a part
        raise ValueError(f"--batch-size must be {world} equal parts of at least 4 images, got {args.batch_size}")
    train, test = load(args.data, Path("data"), args.download, image_size=64)
    check_batch(args.batch_size, len(train.images))
    return train, test


def main(argv: list[str] | None = None) -> tuple[MoCo, list[float]]:
    """The trained model, and the mean loss of each epoch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist-5k", help="mnist-5k, fashion-mnist, cifar10, cifar100 or folder:PATH")
    parser.add_argument("--download", action="store_true", help="let torchvision download what is missing")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=128, help="of all processes together")
    parser.add_argument("--queue", type=int, default=1024)
    parser.add_argument("--temperature", type=float, default=0.3)
    parser.add_argument("--checkpoint", type=Path, help="written after every epoch, and resumed from if it exists")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    with one_line_errors(), process_group() as (rank, world, device):
        train, test = on_every_rank(lambda: load_and_check(args, world))
        settings = {name: getattr(args, name) for name in ("data", "batch_size", "queue", "temperature")}
        settings["contents"] = digest(train.images)
        equal_on_every_rank((len(train.images), settings))
        model = MoCo(train.images.shape[1], args.queue).to(device)
        encode = model.query_encoder if world == 1 else DistributedDataParallel(model.query_encoder)
        criterion = InfoNCELoss(args.temperature)
        optimizer = torch.optim.AdamW(param_groups(model.query_encoder, lr=2e-3, weight_decay=1e-4))
        history, start, n = [], time.perf_counter(), args.batch_size // world
        own = slice(rank * n, (rank + 1) * n)
        saved = from_rank_0(args.checkpoint)
        if saved is not None:
            with contents_of(args.checkpoint):
                weights, (moments, written_with), history = saved
                same_settings(args.checkpoint, written_with, settings)
                model.load_state_dict(weights)
                optimizer.load_state_dict(moments)
        if rank == 0 and len(history) > args.epochs:
            print(f"{args.checkpoint} has {len(history)} epochs, more than --epochs {args.epochs}: nothing is trained")
        for epoch in range(len(history), args.epochs):
            same = torch.Generator().manual_seed(epoch)  # batches and shuffles are the same on every rank
            torch.manual_seed(epoch * world + rank)  # views are its own
            losses = []
            for batch in torch.randperm(len(train.images), generator=same).unfold(0, n * world, n * world):
                images = pixels(train.images[batch[own]], device)
                query = encode(augment(images))
                keys = model.keys(augment(images), torch.randperm(n * world, generator=same), own)
                loss = criterion(query, keys[own], model.queue.rows)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                model.queue.enqueue(keys)
                losses.append(loss.detach())
            history.append(float(torch.stack(losses).mean()))
            if rank == 0:
                print(f"epoch {epoch + 1} loss {history[-1]:.3f} ({time.perf_counter() - start:.0f} s)")
            if rank == 0 and args.checkpoint:
                write((model.state_dict(), (optimizer.state_dict(), settings), history), args.checkpoint)
        if rank == 0:
            known, new = (model.eval().key_encoder(pixels(split.images, device)).cpu() for split in (train, test))
            print(f"10-NN accuracy {metrics.knn_accuracy(known, train.labels, new, test.labels):.3f}")
    return model, history


if __name__ == "__main__":
    main()
