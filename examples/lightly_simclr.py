"""lightly's SimCLR with a non-negative head: two lines change, the rest is lightly's example.

python examples/lightly_simclr.py
"""

from __future__ import annotations

import argparse
import time

import torch
from common import WIDTH, small_convnet
from images import Split, mnist_5k
from lightly.models.utils import get_weight_decay_parameters
from lightly.transforms.simclr_transform import SimCLRTransform
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import to_pil_image

from ssl_heads import NonNegProjection, NTXentLoss  # swap: was lightly.loss and lightly.models.modules


class SimCLR(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection_head = NonNegProjection(WIDTH, 512, 128)  # swap: was SimCLRProjectionHead(WIDTH, 512, 128)

    def forward(self, x: Tensor) -> Tensor:
        features = self.backbone(x)
        return self.projection_head(features)


class Digits(Dataset):
    """Digits as pictures, through a transform of lightly."""

    def __init__(self, split: Split, transform: SimCLRTransform) -> None:
        self.images = [to_pil_image(image).convert("RGB") for image in split.images]
        self.labels, self.transform = split.labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[list[Tensor], int]:
        return self.transform(self.images[index]), int(self.labels[index])


def main(argv: list[str] | None = None) -> tuple[nn.Module, list[float]]:
    """The trained model, and the mean loss of each epoch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1280)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.5)
    args = parser.parse_args(argv)
    torch.manual_seed(0)

    everything = mnist_5k()
    chosen = torch.randperm(len(everything.images))[: args.images]
    transform = SimCLRTransform(input_size=28, min_scale=0.4, cj_prob=0.0, hf_prob=0.0, gaussian_blur=0.0)
    dataset = Digits(Split(everything.images[chosen], everything.labels[chosen]), transform)
    dataloader = DataLoader(dataset, args.batch_size, shuffle=True, drop_last=True)

    model = SimCLR(small_convnet(3))
    criterion = NTXentLoss(temperature=args.temperature)  # swap: the same line with lightly's NTXentLoss
    decay, no_decay = get_weight_decay_parameters([model.backbone, model.projection_head])
    groups = [{"params": decay}, {"params": no_decay, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.06, momentum=0.9, weight_decay=5e-4)

    history, start = [], time.perf_counter()
    for epoch in range(args.epochs):
        losses = []
        for (x0, x1), _ in dataloader:
            loss = criterion(model(x0), model(x1))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        history.append(float(torch.stack(losses).mean()))
        print(f"epoch {epoch + 1} loss {history[-1]:.3f} ({time.perf_counter() - start:.0f} s)")
    return model, history


if __name__ == "__main__":
    main()
