"""lightly's MoCo with a non-negative head and a queue that is saved with the model: a few lines change.

python examples/lightly_moco.py
"""

from __future__ import annotations

import argparse
import copy
import time

import torch
from common import WIDTH, small_convnet
from images import Split, mnist_5k
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import MoCoV2Transform
from lightly.utils.scheduler import cosine_schedule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import to_pil_image

from ssl_heads import InfoNCELoss, MemoryQueue, NonNegProjection  # swap: was lightly.loss and lightly.models.modules


class MoCo(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection_head = NonNegProjection(WIDTH, 512, 128)  # swap: was MoCoProjectionHead(WIDTH, 512, 128)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)

    def forward(self, x: Tensor) -> Tensor:
        query = self.backbone(x)
        return self.projection_head(query)

    def forward_momentum(self, x: Tensor) -> Tensor:
        key = self.backbone_momentum(x)
        return self.projection_head_momentum(key).detach()


class Digits(Dataset):
    """Digits as pictures, through a transform of lightly."""

    def __init__(self, split: Split, transform: MoCoV2Transform) -> None:
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
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--queue", type=int, default=512)
    parser.add_argument("--temperature", type=float, default=0.3)
    args = parser.parse_args(argv)
    torch.manual_seed(0)

    everything = mnist_5k()
    chosen = torch.randperm(len(everything.images))[: args.images]
    transform = MoCoV2Transform(input_size=28, min_scale=0.4, cj_prob=0.0, hf_prob=0.0, gaussian_blur=0.0)
    dataset = Digits(Split(everything.images[chosen], everything.labels[chosen]), transform)
    dataloader = DataLoader(dataset, args.batch_size, shuffle=True, drop_last=True)

    model = MoCo(small_convnet(3))
    criterion = InfoNCELoss(args.temperature)  # swap: was NTXentLoss(memory_bank_size=(args.queue, 128))
    model.queue = MemoryQueue(args.queue, 128)  # swap: the queue is the model's, in its state_dict
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.06, momentum=0.9)

    for (_, x_key), _ in dataloader:  # swap: was random rows of both signs, which are no negatives to these queries
        if model.queue.filled < args.queue:
            model.queue.enqueue(model.forward_momentum(x_key))

    history, start = [], time.perf_counter()
    for epoch in range(args.epochs):
        losses = []
        momentum = cosine_schedule(epoch, args.epochs, 0.9, 1)
        for (x_query, x_key), _ in dataloader:
            update_momentum(model.backbone, model.backbone_momentum, m=momentum)
            update_momentum(model.projection_head, model.projection_head_momentum, m=momentum)
            query, key = model(x_query), model.forward_momentum(x_key)
            loss = criterion(query, key, model.queue.rows)  # swap: was criterion(query, key)
            model.queue.enqueue(key)  # swap: was inside the loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        history.append(float(torch.stack(losses).mean()))
        print(f"epoch {epoch + 1} loss {history[-1]:.3f} ({time.perf_counter() - start:.0f} s)")
    return model, history


if __name__ == "__main__":
    main()
