"""solo-learn's SimCLR and MoCo v2+ with non-negative heads: two or three lines change, trainer and configuration stay.

    python examples/solo_learn.py --method mocov2plus

Its last release on PyPI, 1.0.2, needs pytorch-lightning below 2 and lightning-bolts. What is installed from its
repository calls one function differently and names another differently: the swaps look which one they have.
"""

from __future__ import annotations

import argparse
import logging
import time
from functools import partial

import pytorch_lightning as pl
import torch
from images import augment, mnist_5k, pixels
from solo.methods import METHODS, mocov2plus, simclr
from solo.utils.momentum import initialize_momentum_params
from torch import Tensor
from torch.utils.data import DataLoader

from ssl_heads import InfoNCELoss, NonNegProjection, NTXentLoss, functional
from ssl_heads.adapters import SoloLearnMoCo, SoloLearnSimCLR

CONFIGURATION = {
    "encoder": "resnet18", "backbone_args": {}, "num_classes": 10, "proj_output_dim": 128, "proj_hidden_dim": 512,
    "optimizer": "adamw", "lr": 1e-3, "classifier_lr": 2e-3, "weight_decay": 1e-4, "extra_optimizer_args": {},
    "scheduler": "none", "min_lr": 0.0, "warmup_start_lr": 0.0, "warmup_epochs": 0, "accumulate_grad_batches": 1,
    "lars": False, "exclude_bias_n_norm": False, "num_large_crops": 2, "num_small_crops": 0,
    "base_tau_momentum": 0.9, "final_tau_momentum": 1.0, "momentum_classifier": False, "queue_size": 256,
}  # fmt: skip


def swap_simclr(model: pl.LightningModule) -> None:
    model.projector = NonNegProjection(model.features_dim, 512, 128)  # swap: the optimiser is made later and finds it
    if hasattr(simclr, "manual_simclr_loss_func"):  # 1.0.2 calls (z1, z2, temperature), as our function is called
        simclr.simclr_loss_func = functional.nt_xent
    else:
        simclr.simclr_loss_func = SoloLearnSimCLR(NTXentLoss())  # swap: called as (z, indexes, temperature)


def swap_mocov2plus(model: pl.LightningModule) -> None:
    model.projector = NonNegProjection(model.features_dim, 512, 128)  # swap
    model.momentum_projector = NonNegProjection(model.features_dim, 512, 128)  # swap
    initialize_momentum_params(model.projector, model.momentum_projector)
    model.queue.abs_()  # swap: a queue of both signs has no negatives for non-negative queries
    name = "moco_loss_func" if hasattr(mocov2plus, "moco_loss_func") else "mocov2plus_loss_func"
    setattr(mocov2plus, name, SoloLearnMoCo(InfoNCELoss(normalize=False)))  # swap: (query, key, queue, temperature)


SWAPS = {"simclr": swap_simclr, "mocov2plus": swap_mocov2plus}


def main(argv: list[str] | None = None) -> tuple[pl.LightningModule, list[float]]:
    """The trained method, and the mean contrastive loss of each epoch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=tuple(SWAPS), default="simclr")
    parser.add_argument("--images", type=int, default=768)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.3)
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

    digits = mnist_5k()
    chosen = torch.randperm(len(digits.images))[: args.images]
    images, labels = pixels(digits.images[chosen], "cpu").repeat(1, 3, 1, 1), digits.labels[chosen]

    def views(indexes: list[int]) -> tuple[Tensor, list[Tensor], Tensor]:
        return torch.tensor(indexes), [augment(images[indexes]) for _ in range(2)], labels[indexes]

    loader = DataLoader(range(len(images)), args.batch_size, shuffle=True, drop_last=True, collate_fn=views)
    own = {"max_epochs": args.epochs, "batch_size": args.batch_size, "temperature": args.temperature}
    model = METHODS[args.method](**CONFIGURATION, **own)
    if args.method == "mocov2plus":  # 1.0.2 on pytorch-lightning 1.5 to 1.9, which passes this hook one argument less
        model.on_train_batch_end = partial(model.on_train_batch_end, dataloader_idx=0)
    SWAPS[args.method](model)
    history, start = [], time.perf_counter()
    note = pl.callbacks.LambdaCallback(
        on_train_epoch_end=lambda trainer, _: history.append(float(trainer.callback_metrics["train_nce_loss_epoch"]))
    )
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
    }
    pl.Trainer(accelerator="cpu", max_epochs=args.epochs, callbacks=[note], **quiet).fit(model, loader)
    print(f"loss of each epoch {[round(x, 3) for x in history]} ({time.perf_counter() - start:.0f} s)")
    return model, history


if __name__ == "__main__":
    main()
