"""Baseline of language models: a counter of n-grams."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from linear_eval.metrics import Perplexity

ORDER = 4
"""Characters of an n-gram: the predicted one and three of context."""


def ngram_perplexity(train: Tensor, test: Tensor, vocabulary: int, order: int = ORDER) -> Perplexity:
    """Count the n-grams of training texts and score test texts, each character after the first of its own piece.

    Orders are interpolated as Witten and Bell do ("The zero-frequency problem", IEEE Transactions on Information Theory
    37(4), 1991, method C): P_n(w | h) = (c(hw) + u(h) P_{n-1}(w | h')) / (c(h) + u(h)), where u(h) different characters
    follow the context h, h' is h without its first character, and the last resort is 1 / vocabulary. A context that
    training texts lack leaves the shorter one's probability.

    Args:
        train: Texts to count, integers (N, T + 1) from 0 to vocabulary - 1.
        test: Texts to predict, integers (M, T + 1) of the same range.
        vocabulary: Number of different characters.
        order: Longest n-gram, of 1 character or more.
    """
    seen, asked = train.cpu().numpy().astype(np.int64), test.cpu().numpy().astype(np.int64)
    probability = np.full((len(asked), asked.shape[1] - 1), 1 / vocabulary)
    for length in range(min(order, seen.shape[1], asked.shape[1])):
        first = max(length, 1)  # position of the first predicted character: a piece's own first one is given
        grams, queries = (_codes(texts, length, first, vocabulary) for texts in (seen, asked))
        known, counts = np.unique(grams, return_counts=True)
        contexts, of_context = np.unique(known // vocabulary, return_inverse=True)
        total, different = np.bincount(of_context, counts), np.bincount(of_context)
        own, context = _look_up(known, counts, queries), queries // vocabulary
        all_of, kinds = _look_up(contexts, total, context), _look_up(contexts, different, context)
        shorter = probability[:, first - 1 :]
        longer = (own + kinds * shorter) / np.maximum(all_of + kinds, 1)
        probability[:, first - 1 :] = np.where(all_of > 0, longer, shorter)
    return Perplexity() + torch.from_numpy(-np.log(probability).ravel())


def _codes(texts: np.ndarray, length: int, first: int, vocabulary: int) -> np.ndarray:
    """Number each character from position ``first`` on together with the ``length`` characters before it."""
    end, code = texts.shape[1], np.zeros((), dtype=np.int64)
    for back in range(length, -1, -1):
        code = code * vocabulary + texts[:, first - back : end - back]
    return code


def _look_up(keys: np.ndarray, values: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Return the value of each query's key among rising keys, or 0."""
    at = np.searchsorted(keys, queries).clip(max=len(keys) - 1)
    return np.where(keys[at] == queries, values[at], 0)
