"""Fine-tune a CLIP model so that its dimensions can be named: non-negative towers, gates, importances.

    python examples/clip_finetune.py                                         # offline: real encoders, OpenMoji's names
    python examples/clip_finetune.py --arms all --picture runs/clip.png
    python examples/clip_finetune.py --model ViT-B-32 --pretrained laion2b_s34b_b79k --data csv:pairs.csv \\
        --arms nonneg --image-blocks 4 --text-layers 4 --batch-size 4096 --micro-batch 128 --precision bf16

The arms differ in the classes `Signed`, `NonNegative`, `Gated` and `TriFactor` of clip_arms.py and nowhere else. Ctrl-C
saves the checkpoint; the same command continues from it as if nothing had happened.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import clip_data
import clip_gradient
import clip_inputs
import clip_report
import clip_towers
import torch
from clip_arms import ARMS, TEMPERATURES, TITLES, Signed
from clip_data import Pair
from clip_gradient import Precision
from clip_inputs import Source, Streamed
from clip_towers import Towers
from common import (
    Checkpoint,
    Refused,
    check_device,
    check_picture,
    digest,
    interrupt_after_step,
    markdown,
    one_line_errors,
    warmup_then_cosine,
    writable_folder,
)
from images import square
from torch import Tensor, nn
from tqdm import tqdm

from ssl_heads.functional import safe_normalize


# ---------------------------------------------------------------------------------------------------------- training
def steps_of(pairs: Sequence[Pair], train: Sequence[int], args: argparse.Namespace) -> Iterator[tuple[list[int], int]]:
    """Batches of indices and their seeds. An epoch takes one pair of every concept: no two are each other's negative.

    They follow from the seed alone, so a resumed run draws what it would have drawn.
    """
    by_concept: dict[str, list[int]] = {}
    for i in train:
        by_concept.setdefault(pairs[i].concept, []).append(i)
    batches = max(1, len(by_concept) // args.batch_size)
    for epoch in range(args.epochs):
        draw = random.Random(f"{args.seed} {epoch}")
        order = [draw.choice(members) for members in by_concept.values()]
        draw.shuffle(order)
        for b in range(batches):
            yield order[b * args.batch_size :][: args.batch_size], args.seed * 1_000_003 + epoch * batches + b


def fit(
    arm: str,
    towers: Towers,
    source: Source,
    plan: list[tuple[list[int], int]],
    args: argparse.Namespace,
    kept: Checkpoint,
) -> tuple[Signed, float]:
    """Train one arm, from its checkpoint if it has one; returns the model and the seconds spent in training."""
    torch.manual_seed(args.seed)
    model = ARMS[arm](towers, args).to(args.device)
    precision = Precision(args.device, args.precision)
    optimizer = torch.optim.AdamW(model.param_groups(args))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_then_cosine(step / len(plan)))
    stateful = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "scaler": precision.scaler}
    step, seconds = kept.restore(arm, stateful)
    if not 0 <= step <= len(plan):
        raise Refused(f"{kept.path} is at step {step} of {len(plan)}: it does not fit; remove it or name another")
    batches_an_epoch, clamped, alone = len(plan) // args.epochs, 0, 0

    start = time.perf_counter() - seconds
    model.train()
    with tqdm(total=len(plan), initial=step, desc=f"{arm:>9}", unit="step") as bar, interrupt_after_step() as interrupt:
        for (index, image, text), (_, seed) in zip(source.batches(plan[step:]), plan[step:], strict=True):
            torch.manual_seed(seed)
            optimizer.zero_grad()
            if len(index) > 1:
                loss = clip_gradient.backward(
                    (model.image, model.text), (image, text), model.loss, args.micro_batch, precision
                )
                precision.scaler.step(optimizer)
                precision.scaler.update()
                clamped += model.clamp_scale()
                scheduler.step()
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            else:  # one pair has no negative
                alone += 1
            step += 1
            bar.update()
            if interrupt.is_set() or step % batches_an_epoch == 0:
                kept.save(arm, stateful, step, time.perf_counter() - start)
            if interrupt.is_set():
                raise KeyboardInterrupt
    if alone:
        print(f"{arm}: {alone} batches had one readable image, and were left out", file=sys.stderr)
    if clamped:
        coldest, warmest = TEMPERATURES
        print(f"{arm}: the temperature was held in {coldest} to {warmest} in {clamped} steps", file=sys.stderr)
    return model.eval(), time.perf_counter() - start


# -------------------------------------------------------------------------------------------------------- evaluation
@torch.no_grad()
def features(
    towers: tuple[nn.Module, nn.Module], source: Source, index: Sequence[int], precision: Precision
) -> tuple[list[int], Tensor, Tensor]:
    """What the towers make of unaugmented pairs, and which pairs could be read."""
    kept, images, texts = [], [], []
    for some, image, text in source.batches((index[i : i + 256], None) for i in range(0, len(index), 256)):
        with precision():
            kept += some
            images.append(towers[0](image).float())
            texts.append(towers[1](text).float())
    return kept, torch.cat(images), torch.cat(texts)


class Judge:
    """Held-out pairs, one a concept, and the prompts and words to judge them by."""

    def __init__(
        self, pairs: Sequence[Pair], train: list[int], test: list[int], streamed: Streamed, source: Source
    ) -> None:
        self.pairs, self.source, self.streamed = pairs, source, streamed
        self.train, self.test = train, clip_data.one_a_concept(pairs, test)
        self.groups = sorted({pairs[i].group for i in self.test} - {""})
        self.words = clip_report.vocabulary([pair.caption for pair in pairs])

    def texts(self, model: Signed, captions: Sequence[str]) -> Tensor:
        if not captions:
            return torch.empty(0)
        hidden = self.streamed.text(self.streamed.towers.tokenize(list(captions)))
        with torch.no_grad(), self.streamed.precision():
            return model.rows(model.text_head, model.text(hidden).float())

    @torch.no_grad()
    def judge(self, model: Signed) -> tuple[list[float], clip_report.Held]:
        kept, image, text = features((model.image, model.text), self.source, self.test, self.streamed.precision)
        rows = model.rows(model.image_head, image), model.rows(model.text_head, text)
        held = clip_report.Held(kept, *rows, [self.pairs[i].group for i in kept])
        return clip_report.numbers(held, self.texts(model, self.groups), self.groups), held

    def frozen(self) -> list[float]:
        """The pretrained features: as they are if they lie in one space, else brought into one in closed form."""
        towers, precision = self.streamed.towers, self.streamed.precision
        kept, image, text = features((towers.image, towers.text), self.source, self.test, precision)
        prompts = text[:0]
        if self.groups:
            with torch.no_grad(), precision():
                prompts = towers.text(self.streamed.text(towers.tokenize(self.groups))).float()
        if not towers.aligned:
            fitted = clip_data.one_a_concept(self.pairs, self.train)
            _, *pretrained = features((towers.image, towers.text), self.source, fitted, precision)
            image_map, text_map = clip_report.canonical(*pretrained)
            image, text, prompts = image_map(image), text_map(text), text_map(prompts)
        held = clip_report.Held(kept, *map(safe_normalize, (image, text)), [self.pairs[i].group for i in kept])
        return clip_report.numbers(held, safe_normalize(prompts), self.groups)


def draw(shown: dict[str, tuple[Signed, clip_report.Held]], judge: Judge, note: str, path: Path) -> None:
    """For every arm the dimensions that pictures and captions agree on most, by their top images and words."""
    panels = {}
    for arm, (model, held) in shown.items():
        named = clip_report.name_dimensions(held, judge.texts(model, judge.words), judge.words, count=8)
        places = sorted({i for dimension in named for i in dimension.images})
        found = {i: square(judge.pairs[held.index[i]].read(), 96) for i in places}
        panels[TITLES[arm]] = (named, found)
    clip_report.draw(panels, note, path)


# -------------------------------------------------------------------------------------------------- the command line
def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--arms", nargs="+", choices=[*ARMS, "all"], default=["signed", "nonneg"])
    add("--data", default="openmoji", help="openmoji, csv:PATH, folder:PATH or tar:PATTERN (see docs/clip.md)")
    add("--csv-img-key", help="column of the images; by default image, or open_clip's filepath")
    add("--csv-caption-key", help="column of the captions; by default caption, or open_clip's title")
    add("--csv-separator", help="by default the comma, tab or semicolon of the header")
    add("--limit", type=int, help="use only so many pairs")
    add("--held-out", type=float, default=0.2, help="share of the concepts to test on")
    add("--model", help="of open_clip, such as ViT-B-32; without it, EfficientNet-Lite0 and MiniLM from packages")
    add("--pretrained", help="tag of open_clip's weights, a file, or none")
    add("--size", type=int, default=96, help="of the images, in pixels; an open_clip model has its own")
    add("--image-blocks", type=int, default=0, help="train so many of the image tower's last blocks")
    add("--text-layers", type=int, default=0, help="train so many of the text tower's last layers")
    add("--views", type=int, default=0, help="store so many augmented views of every image, and none is made later")
    add("--stream", action="store_true", help="read images in every epoch; store nothing")
    add("--cache", type=Path, default=Path("runs/clip"), help="where the frozen towers' output is stored")
    add("--hidden", type=int, default=1024, help="width of the heads' hidden layer")
    add("--dim", type=int, default=512, help="width of the embedding")
    add("--loss", choices=["clip", "siglip"], help="unless the arm's own; the tri-factor arm has no other")
    add(
        "--temperature",
        type=float,
        help="at the start, unless the arm's own; it is learned, but for the tri-factor arm",
    )
    add("--dropout", type=float, default=0.5, help="of the heads' input")
    add("--prior", type=float, default=0.2, help="of the gates")
    add("--kl-weight", type=float, default=3e-4, help="of the gates' divergence from their prior")
    add("--decorrelation", type=float, default=0.001, help="weight of the tri-factor arm's decorrelation")
    add("--epochs", type=int, default=40, help="an epoch takes one pair of every concept")
    add("--batch-size", type=int, default=512, help="the pairs that a loss compares")
    add("--micro-batch", type=int, default=128, help="the pairs whose activations are in memory at a time")
    add("--lr", type=float, default=1e-3, help="of the heads")
    add("--tower-lr", type=float, default=1e-4)
    add("--weight-decay", type=float, default=0.01)
    add("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    add("--seed", type=int, default=0)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--checkpoint", type=Path, help="written after every epoch and on Ctrl-C; resumed from if it exists")
    add("--picture", type=Path, default=Path("runs/clip.png"), help="named dimensions of every arm go here")
    args = parser.parse_args(argv)
    args.arms = list(ARMS) if "all" in args.arms else args.arms
    args.csv_separator = args.csv_separator and args.csv_separator.replace("\\t", "\t")  # as a shell passes a tab on
    return args


NOT_SETTINGS = ("arms", "cache", "device", "checkpoint", "picture")  # what a resumed run may change


def check(args: argparse.Namespace) -> None:
    """What can be refused before anything is read; a range that is left in training is said."""
    for name in ("limit", "size", "hidden", "dim", "temperature", "epochs", "micro_batch", "lr", "tower_lr"):
        if getattr(args, name) is not None and not 0 < getattr(args, name) < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} must be positive, got {getattr(args, name)}")
    for name in ("views", "kl_weight", "decorrelation", "weight_decay"):
        if not 0 <= getattr(args, name) < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} must not be negative, got {getattr(args, name)}")
    if not 0 <= args.dropout < 1:
        raise ValueError(f"--dropout must lie in [0, 1), got {args.dropout}")
    if not 0 < args.prior < 1:
        raise ValueError(f"--prior must lie between 0 and 1, got {args.prior}")
    if args.batch_size < 2:
        raise ValueError(f"--batch-size must be at least 2, got {args.batch_size}")
    if args.csv_separator is not None and len(args.csv_separator) != 1:
        raise ValueError(f"--csv-separator must be one character, got {args.csv_separator!r}")
    if args.stream and args.views:
        raise ValueError(
            f"--views {args.views} are stored, and --stream stores nothing: it makes a view in every epoch"
        )
    if args.pretrained is not None and args.model is None:
        raise ValueError(f"--pretrained {args.pretrained} is of a model of open_clip; name it with --model")
    if args.checkpoint is not None and args.checkpoint.is_dir():
        raise ValueError(f"--checkpoint must be a file, and {args.checkpoint} is a folder")
    if not args.stream:
        writable_folder(args.cache / "stems.pt")
    check_picture(args.picture)
    check_device(args.device)
    coldest, warmest = TEMPERATURES
    if args.temperature is not None and not coldest <= args.temperature <= warmest and args.arms != ["trifactor"]:
        what = f"--temperature {args.temperature} is learned, and held in {coldest} to {warmest} from the first step on"
        print(what, file=sys.stderr)


def check_batch(args: argparse.Namespace, pairs: Sequence[Pair], train: Sequence[int]) -> None:
    concepts = len(clip_data.one_a_concept(pairs, train))
    if args.batch_size > concepts:
        raise ValueError(f"--batch-size must lie between 2 and the {concepts} training concepts, got {args.batch_size}")


def prepare(args: argparse.Namespace) -> tuple[Judge, Towers, list[tuple[list[int], int]], Checkpoint]:
    """Data, towers, the training plan and the checkpoint; a user's mistake is a ValueError here."""
    check(args)
    settings = {name: str(value) for name, value in vars(args).items() if name not in NOT_SETTINGS}
    checkpoint = Checkpoint(args.checkpoint, settings)
    precision = Precision(args.device, args.precision)
    torch.manual_seed(args.seed)  # of towers that start untrained
    towers = clip_towers.load(args.model, args.pretrained, args.image_blocks, args.text_layers, args.size)
    towers.image.to(args.device).eval(), towers.text.to(args.device).eval()
    columns = clip_data.Columns(args.csv_img_key, args.csv_caption_key, args.csv_separator)
    pairs = clip_data.load(args.data, towers.size, args.limit, columns)
    checkpoint.same_data(digest([(pair.place, pair.caption, pair.concept, pair.group) for pair in pairs]))
    train, test = clip_data.hold_out(pairs, args.held_out, seed=0)
    streamed = Streamed(pairs, towers, args.micro_batch, args.device, precision)
    next(streamed.reader.batches([(range(min(16, len(pairs))), None)]))  # refused if none of them can be read
    check_batch(args, pairs, train)
    source: Source = streamed
    if not args.stream:
        tower = (args.model, args.pretrained, args.image_blocks, args.text_layers, towers.size)
        weights = clip_inputs.fingerprint(towers.image), clip_inputs.fingerprint(towers.text)
        places = [(pair.place, clip_inputs.version(pair.place), pair.caption) for pair in pairs]
        key = (clip_inputs.READER, args.data, *tower, args.views, args.precision, *weights, places)
        source = clip_inputs.stored(streamed, args.views, args.cache, repr(key))
        train, test = ([i for i in index if i in source.row] for index in (train, test))
        check_batch(args, pairs, train)  # without the images that cannot be read
    plan = list(steps_of(pairs, train, args))
    return Judge(pairs, train, test, streamed, source), towers, plan, checkpoint


def cells(values: Sequence[float]) -> list[str]:
    return ["-" if math.isnan(value) else f"{value:.3f}" for value in values[:-1]] + [f"{values[-1]:.0f}"]


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    try:
        with one_line_errors():
            run(args)
    except KeyboardInterrupt:
        kept = f"{args.checkpoint} continues with the same command" if args.checkpoint else "nothing was kept"
        print(f"\ninterrupted: {kept}", file=sys.stderr)
        sys.exit(130)


def run(args: argparse.Namespace) -> None:
    judge, towers, plan, checkpoint = prepare(args)
    rows, shown = {TITLES["frozen"]: [*cells(judge.frozen()), "-"]}, {}
    for arm in args.arms:
        model, seconds = fit(arm, towers, judge.source, plan, args, checkpoint)
        values, held = judge.judge(model)
        rows[TITLES[arm]], shown[arm] = [*cells(values), f"{seconds:.0f}"], (model, held)
    concepts = len(clip_data.one_a_concept(judge.pairs, judge.train))
    print(f"{concepts} concepts to train on, {len(judge.test)} held out\n")
    print(markdown(rows, [*clip_report.COLUMNS, "seconds"]))
    note = "artwork: OpenMoji, CC BY-SA 4.0" if args.data == "openmoji" else ""
    draw(shown, judge, note, args.picture)
    print(f"\nwhat the dimensions stand for, held-out images and words: {args.picture}")
    if judge.streamed.reader.skipped:
        print(judge.streamed.reader.report(), file=sys.stderr)


if __name__ == "__main__":
    main()
