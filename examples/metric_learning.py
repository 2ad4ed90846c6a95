"""pytorch-metric-learning with a non-negative head, among its own losses and measured by its own tester.

python examples/metric_learning.py
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from common import WIDTH, one_line_errors, small_convnet
from images import augment, load, pixels
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import MultipleLosses, TripletMarginLoss
from pytorch_metric_learning.samplers import MPerClassSampler
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ssl_heads import NonNegProjection, SupConLoss  # swap: was losses.SupConLoss
from ssl_heads.adapters import MetricLearning
from ssl_heads.optim import param_groups


def main(argv: list[str] | None = None) -> tuple[nn.Module, list[float], float]:
    """The trained model, the mean loss of each epoch, and precision at 1 on held-out images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist-5k", help="mnist-5k, fashion-mnist, cifar10 or folder:PATH")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--download", action="store_true", help="let torchvision download what is missing")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--temperature", type=float, default=0.3)
    args = parser.parse_args(argv)
    torch.manual_seed(0)

    train, test = load(args.data, Path("data"), args.download, image_size=64)
    chosen = torch.randperm(len(train.images))[: args.images]
    images, labels = train.images[chosen], train.labels[chosen]
    sampler = MPerClassSampler(
        labels, m=args.batch_size // 10, batch_size=args.batch_size, length_before_new_iter=args.images
    )
    loader = DataLoader(TensorDataset(images, labels), args.batch_size, sampler=sampler, drop_last=True)

    # swap: was nn.Linear(WIDTH, 128)
    model = nn.Sequential(small_convnet(images.shape[1]), NonNegProjection(WIDTH, 2 * WIDTH, 128))
    # swap: was SupConLoss(temperature=0.1); beside the package's own losses it is called with their five arguments
    loss_func = MultipleLosses([MetricLearning(SupConLoss(args.temperature)), TripletMarginLoss()], weights=[1.0, 0.1])
    # swap: no weight decay on one-dimensional parameters; where a loss owns an importance, name the loss as well
    optimizer = torch.optim.AdamW(param_groups(model, lr=2e-3, weight_decay=1e-4))

    history, start = [], time.perf_counter()
    for epoch in range(args.epochs):
        losses = []
        for batch, target in loader:
            embeddings = model(augment(pixels(batch, "cpu")))
            loss = loss_func(embeddings, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        history.append(float(torch.stack(losses).mean()))
        print(f"epoch {epoch + 1} loss {history[-1]:.3f} ({time.perf_counter() - start:.0f} s)")

    model.eval()
    with torch.no_grad():
        query, reference = (model(pixels(x, "cpu")) for x in (test.images[:1000], images))
    calculator = AccuracyCalculator(include=("precision_at_1",), k=1, knn_func=CustomKNN(CosineSimilarity()))
    precision = calculator.get_accuracy(query, test.labels[:1000], reference, labels)["precision_at_1"]
    zeros = float((query == 0).float().mean())
    print(f"precision at 1 on held-out images {precision:.3f}, zeros in their embeddings {zeros:.2f}")
    return model, history, precision


if __name__ == "__main__":
    with one_line_errors():
        main()
