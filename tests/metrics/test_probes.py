from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ssl_heads.metrics import k_sparse_probe, linear_probe
from ssl_heads.metrics.probes import _fit


def data(n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (n,), generator=generator)
    x = torch.randn(n, 7, generator=generator, dtype=torch.float64) + 1.2 * torch.nn.functional.one_hot(y, 7)
    x[:, 5] = 4.0
    return x * torch.arange(1.0, 8.0) + 3, y * 10


def standardised(known: Tensor, x: Tensor) -> list[np.ndarray]:
    mean, deviation = known.mean(0), known.std(0, correction=0)
    deviation[deviation < 1e-9] = torch.inf
    return [((z - mean) / deviation).numpy() for z in (known, x)]


def test_the_fit_is_the_minimum() -> None:
    """The gradient of the loss, by autograd, is zero where it ends."""
    x, y = data(60, 0)
    which, weight = y // 10, torch.rand(60, dtype=torch.float64)
    weight = weight / weight.sum()
    w = _fit(x / 10, which, weight, 0.01).requires_grad_()
    logits = x / 10 @ w[:-1] + w[-1]
    loss = (weight * torch.nn.functional.cross_entropy(logits, which, reduction="none")).sum()
    (loss + 0.01 / 2 * w[:-1].square().sum()).backward()
    assert w.grad is not None
    assert float(w.grad.abs().max()) < 1e-6


@pytest.mark.parametrize("penalty", [1e-3, 0.1])
def test_linear_probe_equals_scikit_learn(penalty: float) -> None:
    (x, y), (test, labels) = data(120, 0), data(200, 1)
    a, b = standardised(x, test)
    reference = LogisticRegression(C=1 / (penalty * 120), tol=1e-10, max_iter=5000).fit(a, y.numpy())
    expected = (reference.predict(b) == labels.numpy()).mean()
    assert linear_probe(x, y, test, labels, penalty=penalty) == pytest.approx(expected)
    assert 0.5 < expected < 1


def test_k_sparse_probe_equals_scikit_learn() -> None:
    (x, y), (test, labels) = data(120, 0), data(200, 1)
    a, b = standardised(x, test)
    found = k_sparse_probe(x, y, test, labels, sizes=[1, 3, 7])
    assert found.classes.tolist() == [0, 10, 20]
    for c, name in enumerate([0, 10, 20]):
        mine, expected = (y == name).numpy(), (labels == name).numpy()
        apart = np.abs(a[mine].mean(0) - a[~mine].mean(0))
        order = np.argsort(-apart, kind="stable")
        assert found.dimensions[c].tolist() == order.tolist()
        for s, k in enumerate([1, 3, 7]):
            # two classes in one softmax share the penalty that one logistic weight bears alone
            weight = np.where(mine, 0.5 / mine.mean(), 0.5 / (~mine).mean()) / len(mine)
            probe = LogisticRegression(C=1e6 / (5e-4 * 1e6), tol=1e-12, max_iter=5000)
            called = probe.fit(a[:, order[:k]], mine, sample_weight=weight).predict(b[:, order[:k]])
            balanced = (called[expected].mean() + (~called[~expected]).mean()) / 2
            assert found.per_class[s, c] == pytest.approx(balanced, abs=1e-12)
    assert found.accuracy.tolist() == pytest.approx(found.per_class.mean(1).tolist())


def test_one_dimension_a_class_needs_one_and_noise_is_at_one_half() -> None:
    y = torch.arange(4).repeat(50)
    one_hot = torch.nn.functional.one_hot(y).float()
    assert k_sparse_probe(one_hot, y, one_hot, y, sizes=[1]).accuracy.tolist() == [1.0]
    assert linear_probe(one_hot, y, one_hot, y) == 1
    noise = k_sparse_probe(torch.randn(200, 8), y, torch.randn(200, 8), y, sizes=[1, 8])
    assert noise.accuracy.tolist() == pytest.approx([0.5, 0.5], abs=0.1)


def test_classes_that_only_one_side_has() -> None:
    y = torch.arange(3).repeat(10)
    x = torch.nn.functional.one_hot(y).float()
    assert linear_probe(x, y, x, y + (y == 2).long()) == pytest.approx(2 / 3)
    found = k_sparse_probe(x, y, x[y < 2], y[y < 2], sizes=[1])
    assert found.per_class[0].isnan().tolist() == [False, False, True]
    assert found.accuracy.tolist() == [1.0]


@pytest.mark.parametrize("probe", [linear_probe, k_sparse_probe])
def test_bad_input_is_refused(probe, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    x, y = torch.randn(9, 4), torch.arange(9) % 3
    with pytest.raises(ValueError, match=r"two classes or more, got class \[0\] alone"):
        probe(x, y * 0, x, y)
    with pytest.raises(ValueError, match=r"\(9, 4\) and \(9, 3\)"):
        probe(x, y, x[:, :3], y)
    with pytest.raises(ValueError, match="penalty"):
        probe(x, y, x, y, penalty=0.0)
    assert k_sparse_probe(x, y, x, y, sizes=[4, 9]).accuracy.unique().numel() == 1
    for sizes in ([0], []):
        with pytest.raises(ValueError, match="sizes must be at least 1, got"):
            k_sparse_probe(x, y, x, y, sizes=sizes)
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match=r"a probe needs scipy: pip install 'ssl-heads\[metrics\]'"):
        k_sparse_probe(x, y, x, y, sizes=[2]) if probe is k_sparse_probe else probe(x, y, x, y)
