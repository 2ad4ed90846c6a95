"""Words of a dimension: those on whose samples the dimension is stronger than chance explains."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

WORD = re.compile(r"[^\W\d_]{2,}")
MOST_WORDS = 5000
LEAST_TEXTS = 3
# standard errors above the mean; with 5,000 words and a dimension without meaning, about seven words pass
FLOOR = 3.0


class Vocabulary(NamedTuple):
    """The words of the texts, and which text holds which.

    Attributes:
        words: The most frequent words, in the order of their numbers.
        word: Shape (m,), the word of each occurrence; a text holds a word once.
        text: Shape (m,), the text of each occurrence, ascending.
        texts: Shape (v,), the number of texts that hold a word.
    """

    words: tuple[str, ...]
    word: Tensor
    text: Tensor
    texts: Tensor


def vocabulary(texts: Sequence[str]) -> Vocabulary:
    """Number the words that at least three texts hold, and not all do."""
    words_of = [set(WORD.findall(text.lower())) for text in texts]
    seen = Counter(word for words in words_of for word in words)
    kept = [word for word, count in seen.most_common(MOST_WORDS) if LEAST_TEXTS <= count < len(words_of)]
    number = {word: i for i, word in enumerate(kept)}
    pairs = [(number[word], row) for row, words in enumerate(words_of) for word in sorted(words) if word in number]
    word, text = torch.tensor(pairs, dtype=torch.int64, device="cpu").reshape(-1, 2).T.contiguous()
    return Vocabulary(tuple(kept), word, text, torch.tensor([seen[w] for w in kept], device="cpu"))


def sums_by_word(vocabulary: Vocabulary, first: int, activations: Tensor) -> Tensor:
    """Sum of the activations (r, d) of the rows from `first` on over the texts of each word: (v, d)."""
    ends = torch.tensor([first, first + len(activations)], device="cpu")
    here = slice(*torch.searchsorted(vocabulary.text, ends).tolist())
    index = torch.stack([vocabulary.word[here], vocabulary.text[here] - first])
    shape = (len(vocabulary.words), len(activations))
    ones = torch.ones(index.shape[1], device="cpu")
    holds = torch.sparse_coo_tensor(index, ones, shape, check_invariants=False)
    return holds @ activations.cpu().float()


def strongest_words(
    vocabulary: Vocabulary, sums: Tensor, mean: Tensor, deviation: Tensor, count: int
) -> tuple[tuple[tuple[str, ...], ...], Tensor]:
    r"""Words of each dimension by standard score, those above three, and the scores (d, count), NaN where none is left.

    .. math:: t_{jw} = \frac{\bar q_{j|w} - \bar q_j}{\sigma_j / \sqrt{n_w}}
    """
    if not vocabulary.words:
        return ((),) * len(mean), torch.full((len(mean), 0), torch.nan, device="cpu")
    n_w = vocabulary.texts[:, None]
    scores = ((sums / n_w - mean) * n_w.sqrt() / deviation.clamp_min(1e-12)).T
    best = scores.topk(min(count, scores.shape[1]), dim=1)
    kept = best.values >= FLOOR
    words = [
        tuple(vocabulary.words[w] for w in row[keep].tolist()) for row, keep in zip(best.indices, kept, strict=True)
    ]
    return tuple(words), best.values.masked_fill(~kept, torch.nan)
