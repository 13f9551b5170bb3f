"""Passages of texts, such as words and sentences: their relevance, the sum over their tokens, and their feature masks."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from whence.core.argument_checks import check_arguments
from whence.core.files import Rows, text_writer
from whence.core.passages import Passage, find_passages, split_paragraphs, split_sentences
from whence.core.result import Result
from whence.core.tokens import text_strings
from whence.core.trees import named_leaves
from whence.errors import InputError, value_repr

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from whence.core.explanation_data import ExplanationData

# <s>, <|im_end|>, [SEP]; but not what stands for a word, [UNK] and [MASK]
SPECIAL = re.compile(r"(?!.*(unk|mask))(<[^<>\s]+>|<\|[^|]+\|>|\[[a-z]+\])", re.IGNORECASE)
OTHERS = "(other tokens)"  # special tokens, and what stands between passages
MOST_FIGURES = 4  # samples that are drawn


@dataclass(frozen=True)
class TokenGroup:
    """Tokens that belong together.

    Args:
        name: Their name, or their text.
        tokens: Their positions.
    """

    name: str
    tokens: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class AggregatedRelevance(Result):
    """Relevance of passages of texts, which adds up to that of all tokens.

    >>> found = e.aggregate("sentence")
    >>> found.to_frame()
    >>> found.scores[0]                  # of the passages of the first sample

    Args:
        groups: The passages of each sample.
        scores: Their relevance by sample.
        targets: What is explained of each sample.
    """

    groups: tuple[tuple[TokenGroup, ...], ...]
    scores: tuple[Tensor, ...]
    targets: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.groups)

    def __repr__(self) -> str:
        lines = [f"Relevance of passages of {len(self)} samples"]
        for sample in range(min(len(self), MOST_FIGURES)):
            name, score = self.ranking(sample)[0]
            lines.append(f"  {self.targets[sample]} ← {name!r} ({score:+.3g})")
        return "\n".join(lines)

    def ranking(self, sample: int = 0) -> list[tuple[str, float]]:
        """Return the passages of a sample with their relevance, the largest first."""
        order = self.scores[sample].argsort(descending=True, stable=True).tolist()
        return [(self.groups[sample][i].name, float(self.scores[sample][i])) for i in order]

    @property
    def table(self) -> Rows:
        """Rows, one for each sample and passage, in the order of the text."""
        return [
            {
                "sample": sample,
                "target": self.targets[sample],
                "passage": group.name,
                "tokens": len(group.tokens),
                "relevance": r,
            }
            for sample, (groups, scores) in enumerate(zip(self.groups, self.scores, strict=True))
            for group, r in zip(groups, scores.tolist(), strict=True)
        ]

    def save(self, path: str | Path) -> Path:
        """Save the bars (.png, .jpg, .pdf, .svg), a page of the coloured texts (.html) or the table (.csv, .json)."""
        return self._save(path, {".html": text_writer(self._page)})

    def _page(self) -> str:
        from whence.plotting.html_pages import render_page
        from whence.plotting.token_text import styled_tokens

        order = [sorted(range(len(groups)), key=lambda i, groups=groups: groups[i].tokens[0]) for groups in self.groups]
        texts = [
            (target, styled_tokens([f"{groups[i].name} " for i in places], scores[places]))
            for target, groups, scores, places in zip(self.targets, self.groups, self.scores, order, strict=True)
        ]
        return render_page("aggregation.html", texts=texts)

    def figure(self) -> "Figure":
        """Return bars of the passages of the first samples."""
        from whence.plotting.bars import Bars
        from whence.plotting.stacked_panels import stack_panels

        panels = [
            Bars(self.scores[i], self.targets[i], [group.name for group in self.groups[i]])
            for i in range(min(len(self), MOST_FIGURES))
        ]
        return stack_panels(panels)


def aggregate_generation(relevance: Tensor, words: Sequence[Sequence[str]], first: int, by: Any) -> AggregatedRelevance:
    """Return what each passage of generated texts rests on: passages of the prompt, and those that were generated before.

    Args:
        relevance: Relevance by new token, sample and preceding token, `[n, N, T + n − 1]`.
        words: The strings of all tokens, `[N][T + n]`.
        first: The position of the first new token, T.
        by: How to divide the texts, as for `aggregate`; a list or a dict divides the prompt, and sentences the generated text.
    """
    groups, scores, targets = [], [], []
    for sample, strings in enumerate(words):
        rows, count = relevance[:, sample], relevance.shape[2]
        prompt = token_groups(strings[:first], first, by)
        written = token_groups(strings[first:], len(strings) - first, by if isinstance(by, str) else "sentence")
        between = _with_others(written, len(strings) - first)[len(written) :]
        for number, passage in enumerate([*written, *between]):
            before = [TokenGroup(g.name, tuple(first + i for i in g.tokens if first + i < count)) for g in written]
            within = _with_others([*prompt, *before[: number + 1]], count)
            summed = rows[list(passage.tokens)].sum(0)
            groups.append(tuple(within))
            scores.append(torch.stack([summed[list(group.tokens)].sum() for group in within]))
            targets.append(passage.name)
    return AggregatedRelevance(tuple(groups), tuple(scores), tuple(targets))


def aggregate(explanation: "ExplanationData", by: Any) -> AggregatedRelevance:
    """Return the relevance of passages of the texts of an explanation."""
    inputs = named_leaves(explanation.inputs)
    ids = {name: r for name, r in named_leaves(explanation.relevance).items() if not inputs[name].is_floating_point()}
    parts = {name: r for name, r in ids.items() if "input_ids" in name} or (ids if len(ids) == 1 else {})
    if not parts:
        raise InputError("aggregate() sums over the tokens of texts; the explained inputs are no token ids")
    first = next(iter(parts))
    per_token = {name: _per_token(explanation, name, r.detach().flatten(1).float().cpu()) for name, r in ids.items()}
    groups, scores = [], []
    for sample in range(len(explanation)):
        found: list[TokenGroup] = []
        sums: list[Tensor] = []
        for name in ids:
            words = explanation.tokens[name][sample] if name in explanation.tokens else None
            tokens = per_token[name][sample]
            # passages by name stand in the first text, that of an encoder; other inputs of ids have no text
            given = name == first or (name in parts and isinstance(by, str))
            of_part = _with_others(token_groups(words, len(tokens), by) if given else [], len(tokens))
            found += of_part
            sums += [tokens[list(group.tokens)].sum() for group in of_part]
        groups.append(tuple(found))
        scores.append(torch.stack(sums))
    return AggregatedRelevance(tuple(groups), tuple(scores), tuple(explanation.target_names()))


def scores_features(method: Any) -> bool:
    """Return whether each token has the score of a feature of several tokens; a loaded explanation has the method's repr."""
    return "feature_mask=" in repr(method)


def _per_token(explanation: "ExplanationData", name: str, relevance: Tensor) -> Tensor:
    """Return the relevance of each token, `[N, T]`; the tokens of a feature, each of which has its score, share it evenly."""
    if not scores_features(explanation.method):
        return relevance
    mask = getattr(explanation.method, "feature_mask", None)
    mask = mask.get(name) if isinstance(mask, Mapping) else mask
    if not isinstance(mask, Tensor) or len(mask) not in (1, len(relevance)):
        raise InputError(
            "the tokens of a feature have its score each, and the features of a loaded explanation or of a part of a batch are "
            "not known; call aggregate() on the explanation of the whole batch, before saving"
        )
    numbers = mask.detach().cpu().long().flatten(1).expand(len(relevance), -1)
    sizes = torch.zeros(len(relevance), int(numbers.max()) + 1).scatter_add(1, numbers, torch.ones(numbers.shape))
    return relevance / sizes.gather(1, numbers)


def token_groups(words: Sequence[str] | None, count: int, by: Any) -> list[TokenGroup]:
    """Return the tokens of passages of a text, by the strings of its tokens."""
    if isinstance(by, Mapping):
        return [TokenGroup(str(name), tuple(_range(name, place, count))) for name, place in by.items()]
    if words is None:
        raise InputError(
            "the tokens have no text; call explanation.with_tokens(tokenizer) first, or pass {name: (start, stop)}"
        )
    words = [" " if SPECIAL.fullmatch(word.strip()) else word for word in words]
    text = "".join(words)
    if isinstance(by, str):
        if by not in SPLITS:
            raise InputError(
                f"by={value_repr(by)}; choose {', '.join(map(repr, SPLITS))}, a list of texts, or a dict of (start, stop)"
            )
        return _located(words, [(p.text, p) for p in SPLITS[by](text)])
    if isinstance(by, Sequence) and by and all(isinstance(part, str) and part.strip() for part in by):
        found = _located(words, list(zip(by, _in_order(text, by), strict=True)))
        if inside := next((group.name for group in found if not group.tokens), None):
            raise InputError(f"the passage {value_repr(inside)} is only a part of a token; pass more of the text")
        return found
    raise InputError(
        f"by={value_repr(by)}; expected a word such as 'sentence', a list of texts, or a dict {{name: (start, stop)}}"
    )


def _range(name: Any, place: Any, count: int) -> range:
    try:
        start, stop = place
        tokens = range(count)[start:stop]
    except (TypeError, ValueError) as error:
        raise InputError(f"passage {name!r} is {value_repr(place)}; expected (start, stop), positions of tokens") from error
    if not tokens or (stop is not None and stop > count):
        raise InputError(f"passage {name!r}, tokens {start} to {stop}, is empty or out of range of {count} tokens")
    return tokens


def _in_order(text: str, parts: Sequence[str]) -> list[Passage]:
    """Return where the parts stand in the text, one after the other, whatever the spaces between their words."""
    found = []
    for part, place in zip(parts, find_passages(text, parts), strict=True):
        if place is None:
            raise InputError(
                f"the passage {value_repr(part)} does not stand in the text as whole words, after the passages before it"
            )
        found.append(place)
    return found


def _located(words: Sequence[str], passages: Sequence[tuple[str, Passage]]) -> list[TokenGroup]:
    """Return the tokens of passages: those whose first character that is no space stands in it."""
    places, at = [], 0
    for word in words:
        places.append(at + len(word) - len(word.lstrip()) if word.strip() else -1 if word else at)
        at += len(word)
    return [
        TokenGroup(name, tuple(i for i, place in enumerate(places) if passage.start <= place < passage.stop))
        for name, passage in passages
    ]


def _with_others(groups: list[TokenGroup], count: int) -> list[TokenGroup]:
    """Return the groups and one of all other tokens; raise `InputError` if groups overlap, since sums would count twice."""
    taken = [i for group in groups for i in group.tokens]
    if len(set(taken)) < len(taken):
        raise InputError("the passages overlap, so that their relevance would not add up; pass passages without common tokens")
    others = tuple(sorted(set(range(count)) - set(taken)))
    return [*(group for group in groups if group.tokens), *([TokenGroup(OTHERS, others)] if others else [])]


def _split_words(text: str) -> list[Passage]:
    return [Passage(m.group(), *m.span()) for m in re.finditer(r"\d+(?:[.,]\d+)+|\w+(?:['’-]\w+)*|[^\w\s]+", text)]


@check_arguments
def token_passages(ids: Tensor, tokenizer: Any, by: str = "sentence") -> Tensor:
    """Number the words, sentences or paragraphs of texts, as a feature mask.

    >>> sentences = whence.token_passages(inputs["input_ids"], tokenizer, "sentence")
    >>> method = whence.Shapley(feature_mask=sentences, baselines=tokenizer.pad_token_id)
    >>> whence.explain(model, inputs, method=method, tokenizer=tokenizer).aggregate("sentence")
    >>> whence.evaluate(model, data, ["lrp"], ["mif"], regions=lambda ids: whence.token_passages(ids, tokenizer))

    Args:
        ids: Token ids `[N, T]`.
        tokenizer: The tokenizer of the model.
        by: "word", "sentence" or "paragraph".

    Returns:
        Integer tensor `[N, T]` with the number of the passage of each token, from 0 in each text. Special tokens, and others
        outside of all passages, have the number that follows the last passage of all texts.

    Raises:
        InputError: `ids` are not token ids `[N, T]`, or `by` is not one of these.
    """
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point() or not ids.numel():
        given = f"{ids.dtype} of shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise InputError(f"token_passages needs token ids [N, T], got {given}")
    size = len(tokenizer) if hasattr(tokenizer, "__len__") else None
    if size is not None and not ((ids >= 0) & (ids < size)).all():
        raise InputError(f"ids has values from {int(ids.min())} to {int(ids.max())}; the tokenizer has the ids 0 to {size - 1}")
    found = torch.full(ids.shape, -1)
    for row, text in zip(found, ids.tolist(), strict=True):
        groups = [g for g in token_groups(text_strings(tokenizer, text), len(text), by) if g.tokens]
        for number, group in enumerate(groups):
            row[list(group.tokens)] = number
    found[found < 0] = found.max() + 1
    return found.to(ids.device)


SPLITS = {"word": _split_words, "sentence": split_sentences, "paragraph": split_paragraphs}
