"""The main example, run for real on a few digits."""

from __future__ import annotations

import gzip
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import images
import numpy as np
import pytest
import simclr
import torch
from PIL import Image
from torchvision import datasets

from tests.checks import assert_same

pytest.importorskip("matplotlib")
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def digits() -> images.Split:
    """40 digits of each class."""
    everything = images.mnist_5k()
    index = torch.cat([(everything.labels == c).nonzero()[:40, 0] for c in range(10)])
    return images.Split(everything.images[index], everything.labels[index])


@pytest.fixture(scope="module")
def folder(digits: images.Split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same digits as PATH/CLASS/NUMBER.png."""
    path = tmp_path_factory.mktemp("digits")
    for i, (image, label) in enumerate(zip(digits.images, digits.labels.tolist(), strict=True)):
        (path / f"class_{label}").mkdir(exist_ok=True)
        Image.fromarray(image[0].numpy()).save(path / f"class_{label}" / f"{i:03}.png")
    return path


def small_run(folder: Path, *more: str) -> list[str]:
    return ["--data", f"folder:{folder}", "--image-size", "28", "--batch-size", "80", "--device", "cpu", *more]


def test_embedded_digits_are_the_real_ones_and_split_by_class():
    data = images.mnist_5k()
    train, test = images.stratified(data)
    assert data.images.shape == (5000, 1, 28, 28)
    assert data.images.dtype == torch.uint8
    assert torch.equal(data.labels.bincount(), torch.full((10,), 500))
    assert torch.equal(test.labels.bincount(), torch.full((10,), 100))
    assert torch.equal(train.labels.bincount(), torch.full((10,), 400))
    assert torch.equal(images.stratified(data)[1].images, test.images)
    means = torch.stack([train.images[train.labels == c].float().mean(0).flatten() for c in range(10)])
    nearest = torch.cdist(test.images.flatten(1).float(), means).argmin(dim=1)
    assert (nearest == test.labels).float().mean() > 0.75  # labels belong to the images
    held_out = {bytes(image.numpy().tobytes()) for image in test.images}
    assert not held_out & {bytes(image.numpy().tobytes()) for image in train.images}


@pytest.mark.parametrize("arm", simclr.ARMS)
def test_training_lowers_the_loss(arm: str, digits: images.Split):
    args = simclr.parse(["--arm", arm, "--epochs", "2", "--batch-size", "80", "--lr", "5e-4", "--device", "cpu"])
    torch.manual_seed(1)
    batch = images.pixels(digits.images[::5], "cpu")
    views = torch.cat([images.augment(batch), images.augment(batch)])

    def loss(model: simclr.SimCLR) -> float:
        model.train()
        with torch.no_grad():
            return float(model.loss(model.backbone(views)))

    torch.manual_seed(args.seed)
    untrained = simclr.ARMS[arm](simclr.small_convnet(1), args.temperature)
    trained, seconds = simclr.train(arm, digits, args, simclr.Checkpoint(None, {}))
    assert loss(trained) < loss(untrained) - 0.1
    assert seconds > 0
    if arm == "tricl":
        assert (trained.importance() - untrained.importance()).abs().median() > 5e-3


def test_all_arms_give_one_table_and_one_picture(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    picture = tmp_path / "made" / "on demand.png"
    simclr.main(
        small_run(folder, "--arms", "all", "--epochs", "1", "--picture", str(picture), "--embeddings", str(tmp_path))
    )
    lines = capsys.readouterr().out.splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert table[0] == ["arm", *simclr.COLUMNS]
    assert [row[0] for row in table[2:]] == list(simclr.TITLES.values())
    accuracy = torch.tensor([[float(cell) for cell in row[1:3]] for row in table[2:]])
    assert ((accuracy > 0.1) & (accuracy <= 1)).all()
    sparsity = [float(row[table[0].index("sparsity")]) for row in table[2:]]
    assert max(sparsity[0], sparsity[3]) < 0.01 < 0.2 < min(sparsity[1], sparsity[2])
    assert str(picture) in lines[-1]
    with Image.open(picture) as image:
        assert image.format == "PNG"
        assert min(image.size) > 500
        assert len(set(image.convert("L").get_flattened_data())) > 50
    for arm in simclr.ARMS:
        trained, untrained = (np.load(tmp_path / f"{name}.npz") for name in (arm, f"{arm}_untrained"))
        assert len(trained["embeddings"]) == len(trained["images"]) == len(trained["labels"]) > 0
        assert ("importance" in trained) == (arm == "tricl")
        assert trained["embeddings"].shape == untrained["embeddings"].shape
        assert not np.allclose(trained["embeddings"], untrained["embeddings"])


def test_ctrl_c_leaves_a_checkpoint_that_resumes_bit_for_bit(folder: Path, tmp_path: Path):
    interrupted, whole = tmp_path / "interrupted.pt", tmp_path / "whole.pt"
    options = ["--arms", "bayes", "tricl", "--epochs", "4", "--batch-size", "160"]
    command = [
        sys.executable,
        str(EXAMPLES / "simclr.py"),
        *small_run(folder, *options, "--checkpoint", str(interrupted)),
    ]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 300
        while not interrupted.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert str(interrupted) in errors
    assert "Traceback" not in errors
    saved = torch.load(interrupted)["arms"]
    assert list(saved) == ["bayes"]
    assert 0 < saved["bayes"]["step"] < 8

    for path in (interrupted, whole):
        simclr.main(small_run(folder, *options, "--checkpoint", str(path)))
    resumed, uninterrupted = torch.load(interrupted)["arms"], torch.load(whole)["arms"]
    assert list(resumed) == list(uninterrupted) == ["bayes", "tricl"]
    for arm in resumed:
        del resumed[arm]["seconds"], uninterrupted[arm]["seconds"]
        assert_same(resumed[arm], uninterrupted[arm])
    assert resumed["bayes"]["step"] == 8


def test_a_checkpoint_of_other_settings_is_refused(folder: Path, tmp_path: Path):
    path = tmp_path / "run.pt"
    simclr.main(small_run(folder, "--epochs", "1", "--checkpoint", str(path)))
    with pytest.raises(SystemExit, match=r"run\.pt was written with .*'seed': 0.* not with .*'seed': 1"):
        simclr.main(small_run(folder, "--epochs", "1", "--checkpoint", str(path), "--seed", "1"))


def test_a_checkpoint_of_other_images_is_refused(folder: Path, tmp_path: Path):
    path, data = tmp_path / "run.pt", tmp_path / "digits"
    shutil.copytree(folder, data)
    simclr.main(small_run(data, "--epochs", "1", "--checkpoint", str(path)))
    shutil.copy(next(iter(data.glob("class_0/*"))), data / "class_0" / "one more.png")
    with pytest.raises(SystemExit, match=r"run\.pt .*data: the checkpoint's differ from the given ones"):
        simclr.main(small_run(data, "--epochs", "1", "--checkpoint", str(path)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("fashion-mnist", r"no fashion-mnist in .*nowhere.FashionMNIST.raw: .* --download"),
        ("cifar10", r"no cifar10 in .*nowhere.cifar-10-batches-py: .* --download"),
        ("cifar100", r"no cifar100 in .*nowhere.cifar-100-python: .* --download"),
        ("folder:nowhere", r"expected images in nowhere.CLASS.*nowhere.train.CLASS"),
        ("folder:", r"write folder:PATH"),
        ("imagenet", r"mnist-5k, fashion-mnist, cifar10, cifar100 or folder:PATH; got 'imagenet'"),
    ],
)
def test_missing_data_says_what_was_expected_where(data: str, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        images.load(data, tmp_path / "nowhere", download=False, image_size=28)
    with pytest.raises(SystemExit, match=message):
        simclr.main(["--data", data, "--root", str(tmp_path / "nowhere")])


@pytest.mark.parametrize("content", [b"", b"no checkpoint"])
def test_a_broken_checkpoint_is_named(content: bytes, folder: Path, tmp_path: Path):
    (tmp_path / "run.pt").write_bytes(content)
    with pytest.raises(SystemExit, match=r"^error: .*run\.pt is broken or no file of this example[^\n]*$"):
        simclr.main(small_run(folder, "--checkpoint", str(tmp_path / "run.pt")))


@pytest.mark.parametrize(
    "option",
    [
        "--picture=x.pn",
        "--image-size=0",
        "--lr=nan",
        "--epochs=0",
        "--batch-size=1",
        "--batch-size=999",
        "--temperature=0",
        "--device=nowhere",
    ],
)
def test_bad_numbers_are_refused(option: str, folder: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exit_:
        simclr.main(small_run(folder, option))
    name, value = option.removeprefix("--").split("=")
    message = str(exit_.value.code) + capsys.readouterr().err
    assert name in message.replace("_", "-")
    assert value in message


def test_folder_with_and_without_a_test_split(folder: Path, digits: images.Split, tmp_path: Path):
    train, test = images.load(f"folder:{folder}", tmp_path, download=False, image_size=28)
    assert train.images.shape == (320, 3, 28, 28)
    assert torch.equal(test.labels.bincount(), torch.full((10,), 8))
    pixel_sums = sorted(torch.cat([train.images, test.images])[:, 0].flatten(1).sum(1).tolist())
    assert pixel_sums == sorted(digits.images.flatten(1).sum(1).tolist())
    for split in ("train", "val"):
        (tmp_path / split).symlink_to(folder)
    train, test = images.load(f"folder:{tmp_path}", tmp_path, download=False, image_size=16)
    assert train.images.shape == test.images.shape == (400, 3, 16, 16)


def test_fashion_mnist_files(digits: images.Split, tmp_path: Path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name, part in (("train", slice(0, 300)), ("t10k", slice(300, 400))):
        pixels, labels = digits.images[part, 0].numpy(), digits.labels[part].numpy().astype(np.uint8)
        header = (2051, *pixels.shape), (2049, len(labels))
        for kind, numbers, content in (("images-idx3", header[0], pixels), ("labels-idx1", header[1], labels)):
            path = raw / f"{name}-{kind}-ubyte"
            path.write_bytes(np.array(numbers, dtype=">i4").tobytes() + content.tobytes())
            with gzip.open(f"{path}.gz", "wb") as file:
                file.write(path.read_bytes())
    train, test = images.load("fashion-mnist", tmp_path, download=False, image_size=0)
    assert torch.equal(train.images, digits.images[:300])
    assert torch.equal(test.images, digits.images[300:])
    assert torch.equal(test.labels, digits.labels[300:])
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"no fashion-mnist in .*raw: put torchvision's files there"):
        images.load("fashion-mnist", tmp_path, download=False, image_size=0)


@pytest.mark.parametrize(
    ("data", "kind", "key"), [("cifar10", datasets.CIFAR10, "labels"), ("cifar100", datasets.CIFAR100, "fine_labels")]
)
def test_cifar_files(data, kind, key, digits: images.Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The layout of CIFAR's pickles, with digits inside; only the checksums of the originals are dropped."""
    for part in ("train_list", "test_list"):
        monkeypatch.setattr(kind, part, [(name, None) for name, _ in getattr(kind, part)])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": None})
    base = tmp_path / kind.base_folder
    base.mkdir()
    colour = torch.nn.functional.pad(digits.images, (2, 2, 2, 2)).repeat(1, 3, 1, 1)
    colour[:, 1] //= 2  # channels differ, so a wrong order shows
    for i, (name, _) in enumerate([*kind.train_list, *kind.test_list]):
        part = slice(40 * i, 40 * i + 40)
        batch = {"data": colour[part].flatten(1).numpy(), key: digits.labels[part].tolist()}
        (base / name).write_bytes(pickle.dumps(batch))
    (base / kind.meta["filename"]).write_bytes(pickle.dumps({kind.meta["key"]: [str(c) for c in range(100)]}))
    train, test = images.load(data, tmp_path, download=False, image_size=0)
    n = 40 * len(kind.train_list)
    assert torch.equal(train.images, colour[:n])
    assert torch.equal(test.images, colour[n : n + 40])
    assert torch.equal(torch.cat([train.labels, test.labels]), digits.labels[: n + 40])


@pytest.mark.parametrize("channels", [1, 3])
def test_views_differ_stay_in_range_and_keep_the_subject(channels: int, digits: images.Split):
    torch.manual_seed(0)
    batch = images.pixels(digits.images, "cpu").repeat(1, channels, 1, 1)
    a, b = images.augment(batch), images.augment(batch)
    assert a.shape == batch.shape
    assert 0 <= a.min() < a.max() <= 1
    assert not torch.equal(a, b)
    own = torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1))
    other = torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1).roll(40, 0))
    assert own.mean() > other.mean() + 0.05
