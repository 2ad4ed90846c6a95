"""SimCLR with a non-negative head on many processes: one batch, whoever holds its rows.

    torchrun --nproc-per-node 2 examples/distributed_simclr.py --steps 200                        # gloo on a CPU
    torchrun --nproc-per-node 8 examples/distributed_simclr.py --data cifar10 --gather ring       # NCCL on GPUs
    python examples/distributed_simclr.py                                                         # one process

With `--checkpoint` the same command continues where it was stopped, also on another number of processes.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
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
    warmup_then_cosine,
    write,
)
from images import Split, augment, load, pixels
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssl_heads import NonNegProjection, NTXentLoss, metrics
from ssl_heads.optim import param_groups


def build(channels: int, device: str, world: int) -> nn.Module:
    """Backbone and head, with the statistics of the whole batch where the device can share them."""
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(small_convnet(channels), NonNegProjection(WIDTH, 4 * WIDTH, WIDTH)).to(device)
    if world == 1:
        return model
    if device != "cpu":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return DistributedDataParallel(model)


def own_images(images: Tensor, step: int, args: argparse.Namespace, rank: int, world: int) -> Tensor:
    """This rank's part of a batch that follows from seed and step alone; parts need not be equally large.

    The batches of an epoch are as equal as can be: no row is dropped, and no batch is too small to be shared.
    """
    epoch, batch = divmod(step, batches_of(len(images), args))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(args.seed + epoch))
    whole = order.tensor_split(batches_of(len(images), args))[batch]
    return images[whole.tensor_split(world)[rank]]


def batches_of(images: int, args: argparse.Namespace) -> int:
    """How many batches an epoch has."""
    return -(-images // args.batch_size)


def check(images: int, args: argparse.Namespace, world: int) -> None:
    for name in ("steps", "batch_size", "log_every", "save_every", "stop_after", "lr", "temperature"):
        if not 0 < getattr(args, name) < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} must be positive, got {getattr(args, name)}")
    check_batch(args.batch_size, images)
    smallest, least = images // batches_of(images, args), 2 * world  # an image alone has no negatives
    if smallest < least:
        what = f"--batch-size {args.batch_size} makes batches of {smallest} of {images} images"
        raise ValueError(f"{what}; {world} processes need {least}, two each")


def save(path: Path, settings: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    states = {"model": plain(model).state_dict(), "optimizer": optimizer.state_dict()}
    write({"settings": settings, **states, "step": step}, path)


def plain(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


def train(images: Tensor, args: argparse.Namespace, rank: int, world: int, device: str) -> nn.Module:
    model = build(images.shape[1], device, world)
    loss = NTXentLoss(args.temperature, gather=args.gather)
    optimizer = torch.optim.AdamW(param_groups(model, lr=args.lr, weight_decay=1e-4))
    step = 0
    settings = {name: getattr(args, name) for name in SETTINGS} | {"contents": digest(images)}
    saved = from_rank_0(args.checkpoint)
    if saved is not None:
        with contents_of(args.checkpoint):
            same_settings(args.checkpoint, saved["settings"], settings)
            plain(model).load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            step = int(saved["step"])
    while step < min(args.steps, args.stop_after):
        for group in optimizer.param_groups:
            group["lr"] = args.lr * warmup_then_cosine(step / args.steps)
        torch.manual_seed((args.seed * 1_000_003 + step) * world + rank)  # of the augmentation
        own = pixels(own_images(images, step, args, rank, world), device)
        value = loss(*model(torch.cat([augment(own), augment(own)])).chunk(2))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        step += 1
        if step % args.log_every == 0 or step == args.steps:
            mean = value.detach()
            if world > 1:
                dist.all_reduce(mean)  # the loss of the whole batch is the mean over ranks
            if rank == 0:
                print(f"step {step} loss {mean.item() / world:.5f}", flush=True)
        if rank == 0 and args.checkpoint and (step % args.save_every == 0 or step in (args.steps, args.stop_after)):
            save(args.checkpoint, settings, model, optimizer, step)
    return plain(model).eval()


@torch.no_grad()
def accuracy(model: nn.Module, train: Split, test: Split, device: str) -> float:
    """10-NN accuracy of the non-negative embedding."""
    bank, queries = (
        torch.cat([model(pixels(batch, device)) for batch in split.images.split(500)]) for split in (train, test)
    )
    return float(metrics.knn_accuracy(bank, train.labels.to(device), queries, test.labels.to(device)))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", default="mnist-5k", help="mnist-5k, fashion-mnist, cifar10, cifar100 or folder:PATH")
    add("--root", type=Path, default=Path("data"), help="where torchvision's data sets are")
    add("--image-size", type=int, default=64, help="of the images of a folder")
    add("--gather", choices=["none", "all", "ring"], default="all", help="whose rows are negatives")
    add("--steps", type=int, default=300)
    add("--batch-size", type=int, default=256, help="of all processes together")
    add("--lr", type=float, default=2e-3)
    add("--temperature", type=float, default=0.2)
    add("--seed", type=int, default=0)
    add("--log-every", type=int, default=10)
    add("--save-every", type=int, default=50)
    add("--checkpoint", type=Path, help="written by rank 0; resumed from if it exists")
    add("--stop-after", type=int, default=1 << 60, help="leave at this step, as if the machine was needed elsewhere")
    return parser.parse_args(argv)


SETTINGS = ("data", "image_size", "gather", "steps", "batch_size", "lr", "temperature", "seed")  # kept when resumed


def load_and_check(args: argparse.Namespace, world: int) -> tuple[Split, Split]:
    train_split, test_split = load(args.data, args.root, False, args.image_size)
    check(len(train_split.images), args, world)
    return train_split, test_split


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    with one_line_errors(), process_group() as (rank, world, device):
        train_split, test_split = on_every_rank(lambda: load_and_check(args, world))
        equal_on_every_rank((len(train_split.images), [getattr(args, name) for name in SETTINGS]))
        model = train(train_split.images, args, rank, world, device)
        if rank == 0 and args.stop_after >= args.steps:
            print(f"10-NN accuracy {accuracy(model, train_split, test_split, device):.3f}", flush=True)
        if world > 1:
            dist.barrier()


if __name__ == "__main__":
    main()
