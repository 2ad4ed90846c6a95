"""MoCo from scratch on real digits; facebookresearch/moco, which is no package, by a transcription of its builder."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image

pytest.importorskip("mlxtend")

import images
import moco
from common import small_convnet

from ssl_heads import NonNegProjection, param_groups
from ssl_heads.adapters import MoCoCriterion
from tests.examples.starts import Starts

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_loss_decreases_the_head_moves_and_neighbours_are_of_one_class(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    starts = Starts(monkeypatch, moco, "NonNegProjection")
    model, history = moco.main(["--epochs", "3", "--queue", "500"])
    assert history[-1] < history[0] - 0.2
    assert starts.all_moved()
    assert (model.queue.rows >= 0).all()
    assert model.queue.filled == 500
    accuracy = re.search(r"10-NN accuracy ([\d.]+)", capsys.readouterr().out)
    assert accuracy is not None
    assert float(accuracy[1]) > 0.6, "chance is 0.1"


def test_keys_come_back_in_order_from_other_company_and_follow_slowly() -> None:
    torch.manual_seed(0)
    model, batch = moco.MoCo(1, 16), torch.rand(8, 1, 28, 28)
    before = [p.clone() for p in model.key_encoder.parameters()]
    for p in model.query_encoder.parameters():
        p.data.add_(1)
    order = torch.randperm(8)
    keys = model.keys(batch, order, slice(0, 8), momentum=0.75)
    for slow, old in zip(model.key_encoder.parameters(), before, strict=True):
        torch.testing.assert_close(slow, old + 0.25)
    torch.testing.assert_close(keys[order], model.key_encoder(batch[order]))
    assert not torch.allclose(keys, model.key_encoder(batch)), "the parts of the batch have statistics of their own"


@pytest.fixture(scope="module")
def few_digits(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """250 digits in a folder, as arguments."""
    tmp_path, digits = tmp_path_factory.mktemp("moco"), images.mnist_5k()
    for i in range(0, 5000, 20):
        folder = tmp_path / "digits" / f"class_{digits.labels[i]}"
        folder.mkdir(parents=True, exist_ok=True)
        to_pil_image(digits.images[i]).save(folder / f"{i}.png")
    return ["--data", f"folder:{tmp_path / 'digits'}", "--batch-size", "32", "--queue", "100"]


def test_a_stopped_run_continues_as_if_it_had_not(
    few_digits: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, through = moco.main([*few_digits, "--epochs", "3"])
    checkpoint = ["--checkpoint", str(tmp_path / "moco.pt")]
    _, before = moco.main([*few_digits, "--epochs", "1", *checkpoint])
    _, after = moco.main([*few_digits, "--epochs", "3", *checkpoint])
    assert before == through[:1]
    assert after == through
    capsys.readouterr()
    assert moco.main([*few_digits, "--epochs", "1", *checkpoint])[1] == through
    assert "moco.pt has 3 epochs, more than --epochs 1: nothing is trained" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch-size", "999"], "--batch-size must lie between 2 and the 200 training images, got 999"),
        (["--batch-size", "3"], "--batch-size must be 1 equal parts of at least 4 images, got 3"),
        (["--queue", "0"], "--queue must be positive, got 0"),
        (["--temperature", "0"], "--temperature must be positive, got 0"),
        (["--data", "folder:nowhere"], "expected images in nowhere"),
        (["--checkpoint", "empty.pt"], r"empty\.pt is broken or no file of this example"),
        (["--checkpoint", "other.pt"], r"other\.pt does not fit what is trained here"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_end_in_one_line(
    options: list[str], message: str, few_digits: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.pt").write_bytes(b"")
    torch.save({"state_dict": {}}, "other.pt")
    with pytest.raises(SystemExit, match=rf"^error: [^\n]*{message}[^\n]*$"):
        moco.main([*few_digits, *options])


def test_a_checkpoint_of_another_queue_says_so(few_digits: list[str], tmp_path: Path) -> None:
    checkpoint = ["--checkpoint", str(tmp_path / "moco.pt"), "--epochs", "1"]
    moco.main([*few_digits, *checkpoint])
    with pytest.raises(SystemExit, match=r"written with 'queue': 100, not with 'queue': 50; .* 'temperature': 0.5;"):
        moco.main([*few_digits, *checkpoint, "--queue", "50", "--temperature", "0.5"])


@pytest.mark.slow
def test_two_processes_fill_one_queue(few_digits: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    checkpoint = tmp_path / "moco.pt"
    arguments = [*few_digits, "--epochs", "2", "--checkpoint", str(checkpoint)]
    finished = subprocess.run(
        [*command, str(EXAMPLES / "moco.py"), *arguments], capture_output=True, text=True, timeout=240
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    weights, _, history = torch.load(checkpoint)
    assert len(history) == 2
    assert int(weights["queue.count"]) == 2 * 6 * 32, "six batches of both processes an epoch"


class Builder(nn.Module):
    """moco/builder.py of facebookresearch/moco on one device, without its shuffling: names and order are its own."""

    def __init__(self, encoder_q: nn.Module, dim: int, K: int, m: float, T: float) -> None:
        super().__init__()
        self.K, self.m, self.T = K, m, T
        self.encoder_q, self.encoder_k = encoder_q, copy.deepcopy(encoder_q).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(dim, K), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    @torch.no_grad()
    def _dequeue_and_enqueue(self, keys: Tensor) -> None:
        ptr, n = int(self.queue_ptr), len(keys)
        assert self.K % n == 0
        self.queue[:, ptr : ptr + n] = keys.T
        self.queue_ptr[0] = (ptr + n) % self.K

    def forward(self, im_q: Tensor, im_k: Tensor) -> tuple[Tensor, Tensor]:
        q = F.normalize(self.encoder_q(im_q), dim=1)
        with torch.no_grad():
            for param_q, param_k in zip(self.encoder_q.parameters(), self.encoder_k.parameters(), strict=True):
                param_k.data = param_k.data * self.m + param_q.data * (1.0 - self.m)
            k = F.normalize(self.encoder_k(im_k), dim=1)
        l_pos = torch.einsum("nc,nc->n", [q, k]).unsqueeze(-1)
        l_neg = torch.einsum("nc,ck->nk", [q, self.queue.clone().detach()])
        logits = torch.cat([l_pos, l_neg], dim=1)
        logits /= self.T
        self._dequeue_and_enqueue(k)
        return logits, torch.zeros(logits.shape[0], dtype=torch.long)


class Backbone(nn.Module):
    """A network whose last layer is called fc, as torchvision's ResNet's is."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = small_convnet(1), nn.Linear(256, 128)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x))


def test_the_swap_of_the_page_in_a_transcription_of_the_builder() -> None:
    torch.manual_seed(0)
    model = Builder(Backbone(), dim=128, K=512, m=0.99, T=0.3)
    model.encoder_q.fc = NonNegProjection(256, 512, 128)
    model.encoder_k.fc = copy.deepcopy(model.encoder_q.fc).requires_grad_(False)
    model.queue.abs_()
    criterion = MoCoCriterion()
    start = [p.detach().clone() for p in model.encoder_q.fc.parameters()]
    optimizer = torch.optim.AdamW(param_groups(model.encoder_q, lr=2e-3, weight_decay=1e-4))
    digits = images.pixels(images.mnist_5k().images[::3], "cpu")
    losses = []
    for step in range(60):
        batch = digits[torch.randperm(len(digits))[:64]]
        output, target = model(images.augment(batch), images.augment(batch))
        if step == 0:
            torch.testing.assert_close(criterion(output, target), F.cross_entropy(output, target))
        loss = criterion(output, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # the first eight steps fill the queue with keys
    assert sum(losses[-10:]) / 10 < sum(losses[8:18]) / 10 - 0.1
    assert all(not torch.equal(p, q) for p, q in zip(model.encoder_q.fc.parameters(), start, strict=True))
    assert all(p.grad is None for p in model.encoder_k.parameters())
