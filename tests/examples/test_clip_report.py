"""The numbers of the CLIP example, and how it names dimensions."""

from __future__ import annotations

import clip_report
import pytest
import torch
from torch import nn


def test_recall_counts_ties_against_the_query():
    identity = torch.eye(20)
    assert clip_report.recalls(identity, identity) == [1.0, 1.0, 1.0]
    assert clip_report.recalls(torch.ones(20, 3), torch.ones(20, 3)) == [0.0, 0.0, 0.0]
    query, key = torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(0))
    ranks = [sum(float(query[i] @ key[j]) > float(query[i] @ key[i]) for j in range(30)) for i in range(30)]
    assert clip_report.recalls(query, key) == pytest.approx([sum(r < k for r in ranks) / 30 for k in (1, 5, 10)])


def test_zero_shot_is_the_mean_over_classes():
    image = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert clip_report.zero_shot(image, torch.eye(2), torch.tensor([0, 0, 0, 1])) == 0.5


def test_agreement_tells_shared_dimensions_from_unrelated_ones():
    shared, other, third = torch.rand(3, 400, 1, generator=torch.Generator().manual_seed(0))
    dead = torch.zeros(400, 1)
    scores = clip_report.agreement(torch.cat([shared, other, dead], 1), torch.cat([shared, third, shared], 1))
    assert scores[0] == pytest.approx(1)
    assert abs(scores[1]) < 0.15
    assert scores[2].isnan()


def test_canonical_correlation_finds_what_two_sides_share():
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(400, 3, generator=generator)
    image, text = (
        latent @ torch.randn(3, width, generator=generator) + 0.1 * torch.randn(400, width, generator=generator)
        for width in (20, 15)
    )
    image_map, text_map = clip_report.canonical(image[:300], text[:300], dim=3, ridge=1e-3)
    rows = (nn.functional.normalize(x, dim=1) for x in (image_map(image[300:]), text_map(text[300:])))
    assert clip_report.recalls(*rows)[0] > 0.8
    assert clip_report.recalls(image[300:, :15], text[300:])[0] < 0.2


def test_dimensions_are_named_by_images_and_words_apart():
    generator = torch.Generator().manual_seed(0)
    image, text = 0.01 * torch.rand(2, 40, 6, generator=generator)
    image[:10, 2] = text[:10, 2] = torch.linspace(1, 0.5, 10)
    words = torch.zeros(3, 6)
    words[1, 2] = 1.0
    held = clip_report.Held(list(range(40)), image, text, [""] * 40)
    (first, *_) = clip_report.name_dimensions(held, words, ["sun", "moon", "star"], count=2)
    assert (first.dim, first.images, first.words) == (2, [0, 1, 2, 3, 4, 5], ["moon"])
    assert first.agreement > 0.99
