"""open_clip with non-negative towers and a loss of ssl_heads: a small CLIP learns OpenMoji's drawings and their names.

    python examples/open_clip_swap.py --loss tricl

For pretrained weights write `open_clip.create_model_and_transforms("ViT-B-32", pretrained="laion2b_s34b_b79k",
output_dict=True)` for the model. Offline it starts from random weights; the BPE vocabulary ships with open_clip.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import open_clip
import torch
from openmoji import pairs
from torch import Tensor, nn

# --- swap: what replaces open_clip's ClipLoss and the two projections
from ssl_heads import CLIPLoss, FeatureImportance, NonNegLinear, NonNegProjection, SigLIPLoss, TriFactorContrast
from ssl_heads.adapters import Floor, OpenCLIP
from ssl_heads.optim import param_groups

VISION = {"image_size": 64, "patch_size": 16, "width": 128, "head_width": 32, "layers": 3}
TEXT = {"context_length": 16, "width": 128, "heads": 4, "layers": 2}
WIDTH = 64


def clip(sigmoid: bool) -> nn.Module:
    start = {"init_logit_scale": 2.3, "init_logit_bias": -10.0} if sigmoid else {}  # SigLIP's own
    return open_clip.CLIP(WIDTH, VISION, TEXT, output_dict=True, **start)


def swap_heads(model: nn.Module, width: int = WIDTH) -> None:
    # --- swap: `visual.proj` is a Parameter, so the head follows the tower, which keeps all its attributes. The head is
    # a part of the model and not of the tower, which only knows it: --lock-image freezes whatever is in the tower
    model.ssl_head = nn.Sequential(NonNegProjection(width, 2 * width, width), Floor())
    object.__setattr__(model.visual, "ssl_head", model.ssl_head)
    model.visual.register_forward_hook(through_head)
    model.visual.lock = partial(lock_image, model.visual)
    model.lock_text_tower = partial(lock_text, model)
    # --- swap: `text_projection` is a Parameter too; open_clip calls it only if it is an nn.Linear, and this one is
    weight = model.text_projection.detach().T
    del model.text_projection
    model.text_projection = NonNegLinear(weight.shape[1], width)
    model.text_projection.weight.data.copy_(weight)
    model.text_projection.register_forward_hook(no_empty_row)


def lock_image(visual: nn.Module, unlocked_groups: int = 0, freeze_bn_stats: bool = False) -> None:
    """Of `--lock-image`: the pretrained tower is frozen; the head in it, which is new, goes on learning."""
    type(visual).lock(visual, unlocked_groups, freeze_bn_stats)
    visual.ssl_head.requires_grad_(True)


def lock_text(model: nn.Module, unlocked_layers: int = 0, freeze_layer_norm: bool = True) -> None:
    """Of `--lock-text`, likewise."""
    type(model).lock_text_tower(model, unlocked_layers, freeze_layer_norm)
    model.text_projection.requires_grad_(True)


def through_head(visual: nn.Module, inputs: tuple[Tensor, ...], features: Tensor) -> Tensor:
    return visual.ssl_head(features)


def no_empty_row(projection: nn.Module, inputs: tuple[Tensor, ...], features: Tensor) -> Tensor:
    return Floor()(features)  # open_clip divides by the length: of a zero row that is NaN in fp16, 1e9 as a gradient


def swap_loss(name: str, model: nn.Module) -> nn.Module:
    # --- swap: instead of open_clip.ClipLoss()
    if name != "tricl":
        return CLIPLoss() if name == "clip" else SigLIPLoss()
    # the model owns what is learned: open_clip optimises, wraps in DDP and saves nothing else
    model.importance = FeatureImportance(WIDTH)
    return OpenCLIP(TriFactorContrast(importance=model.importance, two_towers=True, decorrelation_weight=0.1))


def main(argv: list[str] | None = None) -> tuple[nn.Module, list[float]]:
    """Train; the model, and the mean loss of each epoch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", choices=("clip", "siglip", "tricl"), default="clip")
    parser.add_argument("--pairs", type=int, default=1024)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--root", type=Path, default=Path("runs/openmoji"), help="where the drawings are kept")
    args = parser.parse_args(argv)
    torch.manual_seed(0)

    data = pairs(64, args.root, limit=args.pairs)
    images = data.images.float() / 127.5 - 1
    texts = open_clip.SimpleTokenizer(context_length=TEXT["context_length"])(data.names)
    model = clip(sigmoid=args.loss == "siglip")
    swap_heads(model)
    loss = swap_loss(args.loss, model)
    optimizer = torch.optim.AdamW(param_groups(model, lr=1e-3, weight_decay=0.1))
    history: list[float] = []
    for epoch in range(args.epochs):
        values = []
        for batch in torch.randperm(len(images)).split(128):
            out = model(images[batch], texts[batch])  # from here on, the body of open_clip's train_one_epoch
            losses = loss(**out, output_dict=True)
            total = sum(losses.values())
            optimizer.zero_grad()
            total.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # --grad-clip-norm 1
            optimizer.step()
            model.logit_scale.data.clamp_(0, 4.6052)
            values.append(total.item())
        history.append(sum(values) / len(values))
        print(f"epoch {epoch + 1}: loss {history[-1]:.3f}, scale {model.logit_scale.exp().item():.1f}")
    return model, history


if __name__ == "__main__":
    main()
