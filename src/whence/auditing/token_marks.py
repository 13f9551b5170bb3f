"""Tokens and phrases of texts that recur in one class and raise its probability wherever they are pasted."""

from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from whence.auditing.marks import TokenMark
from whence.auditing.transplants import Effect, Probability, effect

MAX_WORDS = 3  # of a phrase
N_BEST, MIN_HITS = 6, 8
MIN_SHARE, MAX_RATIO = 0.05, 0.2  # of the texts of the class; of that share, in other classes


@dataclass(frozen=True)
class Phrase:
    """A phrase that recurs in a class.

    Args:
        ids: Its token ids.
        rows: The texts of the class that contain it.
        share: Their share.
        elsewhere: The share of the texts of other classes that contain it.
        relevance: Mean share of the relevance on it, in the texts that contain it.
    """

    ids: tuple[int, ...]
    rows: Tensor
    share: float
    elsewhere: float
    relevance: float


def recurring_phrases(own: Tensor, relevance: Tensor, others: Tensor, protected: Collection[int]) -> list[Phrase]:
    """Return the phrases that recur in a class and not in others, those with most relevance in all its texts first.

    Args:
        own: Token ids of the texts of the class, `[n, T]`.
        relevance: Shares of their relevance, `[n, T]`.
        others: Token ids of the texts of other classes.
        protected: Ids that are no words, such as padding.
    """
    found: dict[tuple[int, ...], dict[int, float]] = defaultdict(dict)
    for row, (ids, shares) in enumerate(zip(own.tolist(), relevance.tolist(), strict=True)):
        for phrase, start in _phrases(ids, protected):
            value = sum(shares[start : start + len(phrase)])
            found[phrase][row] = max(value, found[phrase].get(row, 0.0))
    frequent = {phrase: rows for phrase, rows in found.items() if len(rows) >= max(MIN_HITS, MIN_SHARE * len(own))}
    counts = Counter(phrase for ids in others.tolist() for phrase in {p for p, _ in _phrases(ids, protected)} & frequent.keys())
    phrases = [
        Phrase(
            phrase, torch.tensor(sorted(rows)), len(rows) / len(own), counts[phrase] / max(len(others), 1),
            sum(rows.values()) / len(rows),
        )
        for phrase, rows in frequent.items()
    ]  # fmt: skip
    recurring = [phrase for phrase in phrases if phrase.elsewhere <= MAX_RATIO * phrase.share]
    ranked = sorted(recurring, key=lambda phrase: (-phrase.relevance * phrase.share, len(phrase.ids)))
    return _without_parts(ranked)[:N_BEST]


def phrase_effect(
    phrase: Phrase, onto: Tensor, others: Tensor, protected: Collection[int], probability: Probability, seed: int = 0
) -> Effect:
    """Return the effect of pasting a phrase at random places of texts; the control pastes phrases of other classes' texts."""
    mark = TokenMark(phrase.ids, frozenset(protected))
    return effect(mark, mark.like(others, seed), onto, probability(onto), probability)


def _phrases(ids: list[int], protected: Collection[int]) -> list[tuple[tuple[int, ...], int]]:
    """Return all phrases of up to three words of a text, with their starts."""
    found = []
    for start in range(len(ids)):
        for stop in range(start + 1, min(start + MAX_WORDS, len(ids)) + 1):
            if ids[stop - 1] in protected:
                break
            found.append((tuple(ids[start:stop]), start))
    return found


def _without_parts(ranked: list[Phrase]) -> list[Phrase]:
    """Return the phrases without those that are part of, or contain, one that ranks higher and has the same texts."""
    kept: list[Phrase] = []
    for phrase in ranked:
        words = set(phrase.ids)
        if not any(words <= set(other.ids) or set(other.ids) <= words for other in kept):
            kept.append(phrase)
    return kept
