"""Explanations of the tokens that a language model generates."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from whence.core.aggregation import AggregatedRelevance, aggregate_generation, scores_features, token_groups
from whence.core.argument_checks import check_arguments
from whence.core.explainer import Explainer
from whence.core.explanation import Explanation
from whence.core.files import text_writer
from whence.core.inputs import Inputs, check_model
from whence.core.progress import Progress, progress as progressing
from whence.core.result import Result
from whence.core.targets import Logit, Span
from whence.core.texts import DECODER, TextModel, is_encoder_decoder, with_decoder_start
from whence.core.tokens import text_strings
from whence.core.trees import Tree, named_leaves, with_leaves
from whence.errors import InputError, TargetError, value_repr
from whence.lrp.engine.conservation import Conservation
from whence.lrp.engine.model_outputs import logits_of
from whence.methods.registry import Method

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHORT = 40  # characters of a sentence in a figure


@dataclass(frozen=True, eq=False)
class Generation(Result):
    """A generated text, and an explanation of each new token.

    >>> written = whence.explain_generation(model, {"input_ids": ids}, max_new_tokens=12)
    >>> written.relevance[3]            # of all tokens before the fourth new token; later tokens have 0
    >>> written.with_tokens(tokenizer).save("why.png")

    Args:
        ids: Token ids of the prompt and the continuation, `[N, T + n]`; those of the decoder for an encoder-decoder.
        start: The length T of the prompt, at which the new tokens start.
        explanations: The explanation of each of the n new tokens.
        words: The strings of `ids` by sample, where a tokenizer is known.
    """

    ids: Tensor  # [N, T + n]; of the decoder for an encoder-decoder
    start: int  # T, where the new tokens start
    explanations: tuple[Explanation, ...]  # n
    words: tuple[list[str], ...] = ()  # of `ids`, by sample

    @property
    def relevance(self) -> Tensor:
        """The relevance of every preceding token, by new token and sample, `[n, N, T + n − 1]`; encoder tokens come first."""
        return torch.stack([_token_relevance(e.relevance) for e in self.explanations])

    def __len__(self) -> int:
        return len(self.explanations)

    def __repr__(self) -> str:
        lines = [f"Generation of {len(self)} tokens, {len(self.ids)} texts"]
        lines += [f"  {''.join(words[: self.start])!r} → {''.join(words[self.start :])!r}" for words in self.words]
        return "\n".join(lines)

    def __iter__(self) -> Iterator[Explanation]:
        return iter(self.explanations)

    def __getitem__(self, index: int) -> Explanation:
        return self.explanations[index]

    def with_tokens(self, tokenizer: Any) -> "Generation":
        """Return the generation with token strings, for figures and pages; `tokenizer` is as for `Explanation.with_tokens`."""
        named = tuple(e.with_tokens(tokenizer) for e in self.explanations)
        return replace(self, explanations=named, words=tuple(text_strings(tokenizer, row) for row in self.ids.tolist()))

    @property
    def table(self) -> list[dict[str, Any]]:
        """Rows, one for each new token, sample and preceding token: the relevance of the latter."""
        return [{"new_token": step, **row} for step, e in enumerate(self.explanations) for row in e.table]

    def passage(self, text: str, sample: int = 0) -> Explanation:
        """Return why a passage of the generated text was written: the sum of the explanations of its tokens.

        >>> written.passage("a red ball").save("ball.png")          # with a heatmap of the picture that the answer is about

        Args:
            text: A part of the generated text.
            sample: The number of the text.

        Returns:
            An `Explanation` of the sum of the logits of these tokens, or of their contrasts, of this sample alone.
        """
        self._check_words()
        if not isinstance(sample, int) or not 0 <= sample < len(self.words):
            raise InputError(f"sample={value_repr(sample)} is out of range; the generation has {len(self.words)} texts")
        strings = self.words[sample][self.start :]
        (group,) = token_groups(strings, len(strings), [text])
        chosen = [self.explanations[i][sample] for i in group.tokens]
        target = _sum_of_targets([e.target for e in chosen], self.start + group.tokens[0], self.ids[sample : sample + 1])
        return replace(sum_explanations(chosen), target=target, note=f"{text!r}")

    def _check_words(self) -> None:
        if not self.words:
            raise InputError("the tokens have no text; call with_tokens(tokenizer) first")

    def aggregate(self, by: Any = "sentence") -> AggregatedRelevance:
        """Sum the relevance over passages: for each passage of the generated texts, that of each passage before it.

        >>> written.aggregate("sentence").ranking(0)            # what the first generated sentence rests on
        >>> written.aggregate({"question": (0, 12), "text": (12, 80)}).to_frame()

        Args:
            by: "word", "sentence" or "paragraph"; or texts of passages of the prompt in their order, or a dict from names to
                (start, stop), positions of tokens of the prompt, where the generated text is divided into sentences.

        Returns:
            An `AggregatedRelevance`, whose samples are the passages of the generated texts.
        """
        self._check_words()
        if scores_features(self.explanations[0].method):
            raise InputError(
                "the tokens of a feature have its score each, so that sums over tokens count it several times; aggregate the "
                "explanation of each token: written[i].aggregate(…)"
            )
        first = self._first_new_token
        words = [[*self._given(i)[: first - self.start], *self.words[i]] for i in range(len(self.words))]
        return aggregate_generation(self.relevance.detach().float().cpu(), words, first, by)

    def figure(self) -> "Figure":
        """Return a heatmap of the first text, with a row for each new token and a column for each preceding token.

        For long texts, rows and columns are sentences.
        """
        from whence.plotting.palettes import sign_legend
        from whence.plotting.token_text import MOST_TOKENS, token_grid

        if self.words and max(self.relevance.shape[0], self.relevance.shape[2]) > MOST_TOKENS:
            return self._sentence_figure()
        relevance = self.relevance[:, 0].float().cpu()
        first = self._first_new_token
        future = torch.arange(relevance.shape[1]) >= first + torch.arange(len(relevance))[:, None]
        title = f"relevance of preceding tokens for each generated one, by the row's largest, square root ({sign_legend()})"
        return token_grid(self._written(0), self._given(0), relevance.masked_fill(future, float("nan")), title)

    def _sentence_figure(self) -> "Figure":
        from whence.core.passages import shorten_line
        from whence.plotting.palettes import sign_legend
        from whence.plotting.token_text import token_grid

        found = replace(self, words=self.words[:1]).aggregate("sentence")
        columns = {group.tokens: i for i, group in enumerate(found.groups[-1])}
        relevance = torch.full((len(found), len(columns)), float("nan"), dtype=torch.float32)
        for row, (groups, scores) in enumerate(zip(found.groups, found.scores, strict=True)):
            relevance[row, [columns.get(group.tokens, len(columns) - 1) for group in groups]] = scores  # others come last
        names = [group.name for group in found.groups[-1]]
        written, given = ([shorten_line(name, SHORT) for name in side] for side in (found.targets, names))
        title = f"relevance of preceding sentences for each, by the row's largest, square root ({sign_legend()})"
        return token_grid(written, given, relevance, title)

    def save(self, path: str | Path) -> Path:
        """Save the figure (.png, .jpg, .pdf, .svg), a page (.html) or the table (.csv, .json), and return the path.

        On the page, a generated token shows what it rests on when one points at it.
        """
        return self._save(path, {".html": text_writer(self._page)})

    @property
    def _first_new_token(self) -> int:
        """The position of the first new token among all tokens, those of an encoder included."""
        return self.relevance.shape[2] - (self.ids.shape[1] - 1) + self.start

    def _given(self, sample: int) -> list[str]:
        """Return the strings of the tokens of a sample before the last."""
        e = self.explanations[0]
        words = [word for rows in e.tokens.values() for word in rows[sample]]
        return words or [f" {int(i)}" for t in _text_leaves(e.inputs) for i in t[sample]]

    def _written(self, sample: int) -> list[str]:
        """Return the names of the new tokens of a sample."""
        return [e.target_names()[sample] for e in self.explanations]

    def _page(self) -> str:
        from whence.plotting.html_pages import render_page
        from whence.plotting.palettes import PALETTES

        first, relevance, texts = self._first_new_token, self.relevance.float().cpu(), []
        for sample in range(relevance.shape[1]):
            names, rows = self._written(sample), relevance[:, sample].tolist()
            notes = [
                f"{name!r}: output {float(e.output[sample]):.3g} = relevance {float(e.conservation.relevance[sample]):.3g}"
                + ("" if e.conservation.absorbed is None else f" + absorbed {float(e.conservation.absorbed[sample]):.3g}")
                for name, e in zip(names, self.explanations, strict=True)
            ]
            words = [*self._given(sample), f" {names[-1]}"]
            if self.words:  # which follow those of an encoder
                words[-len(self.words[sample]) :] = self.words[sample]
            texts.append({"words": words, "first": first, "relevance": _rounded(rows), "notes": notes})
        colours = [{"positive": pair.positive, "negative": pair.negative} for pair in PALETTES.values()]
        data = {"texts": [{key: text[key] for key in ("relevance", "notes")} for text in texts], "palettes": colours}
        return render_page("generation.html", texts=texts, data=data)


def _sum_of_targets(targets: Sequence[Any], start: int, ids: Tensor) -> Any:
    """Return the target of the sum of the logits of tokens that follow each other, or of their contrasts."""
    others = [target.rather_than for target in targets]
    span = Span(start, start + len(targets), ids)
    if all(other is None for other in others):
        return span

    def contrast(outputs: Any) -> Tensor:
        predicted = logits_of(outputs)[:, start - 1 : start - 1 + len(targets)]
        both = (ids[:, start : start + len(targets)], torch.stack(others, 1))
        written, instead = (predicted.gather(2, index[..., None]).sum((1, 2)) for index in both)
        return written - instead

    contrast.__name__ = f"{span.words(str, 0)} rather than the likeliest others"
    return contrast


def sum_explanations(explanations: Sequence[Explanation]) -> Explanation:
    """Return the explanation of the sum of the outputs of explanations of the same inputs."""
    first, accounts = explanations[0], [e.conservation for e in explanations]
    named = [named_leaves(e.relevance) for e in explanations]
    relevance = {name: _sum([leaves[name] for leaves in named]) for name in named[0]}
    layers = {path for account in accounts for path in account.by_layer}
    output = _sum([e.output for e in explanations])
    account = Conservation(
        output,
        _sum([a.relevance for a in accounts]),
        _sum_known([a.absorbed for a in accounts]),
        {path: _sum([a.by_layer[path] for a in accounts if path in a.by_layer]) for path in layers},
        _sum_known([a.baseline for a in accounts]),
        accounts[0].adds_up,
    )
    return replace(
        first, relevance=with_leaves(first.relevance, relevance), output=output, conservation=account, layers={},
        standard_errors=None, interactions=None,
    )  # fmt: skip


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).sum(0)


def _sum_known(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """Return the sum of amounts, or None if any is not known."""
    known = [t for t in tensors if t is not None]
    return _sum(known) if len(known) == len(tensors) else None


@check_arguments
def explain_generation(
    model: Callable[..., Any],
    inputs: Tree,
    *,
    max_new_tokens: int = 20,
    continuation: Tensor | None = None,
    contrast: bool = False,
    method: Method | str | None = None,
    tokenizer: Any = None,
    progress: Progress = True,
) -> Generation:
    """Generate text with a language model by greedy decoding, and explain the logit of each new token.

    >>> written = whence.explain_generation(model, {"input_ids": ids}, max_new_tokens=12)
    >>> written.with_tokens(tokenizer).save("why.png")

    Generation takes one forward pass per token, and stops when all texts have ended; the explanations take one more forward
    pass, and one backward pass per token.

    Args:
        model: A causal language model or an encoder-decoder (T5, Whisper), in eval mode, or a pipeline of transformers.
        inputs: A text, a list of texts, or chat messages; or token ids `[N, T]`, all texts of the same length or padded on the
            left, or a dict with `input_ids`. For an encoder-decoder, the inputs of its encoder; its decoder starts from its
            start token, or from `decoder_input_ids`.
        max_new_tokens: The number of tokens to generate at most.
        continuation: Token ids `[N, n]` that were generated before (for example by sampling), to explain instead.
        contrast: Whether to explain why each token was written rather than the likeliest other one, the difference of their
            logits.
        method: A method or its short name; LRP by default.
        tokenizer: The tokenizer of the model, for inputs that are texts or chat messages, and for the names of tokens.
        progress: Whether to show a progress bar, or a function that is called with (done, total) instead, in new tokens.

    Returns:
        A `Generation`.

    Raises:
        InputError: The inputs or the continuation have another form, or texts are padded on the right.
        TargetError: The model returns no logits `[N, T, vocabulary]`, or no token is generated.
    """
    check_token_count(max_new_tokens)
    texts = TextModel.of(model, tokenizer)
    model, inputs = texts.model, texts.read(inputs, for_generation=True)
    check_model(model)
    if is_encoder_decoder(model):
        inputs = with_decoder_start(model, inputs)
    parts = inputs if isinstance(inputs, Mapping) else {"input_ids": inputs}
    writes, masks = _id_input_names(parts)
    ids, mask = parts.get(writes), parts.get(masks)
    if not isinstance(ids, Tensor) or not _are_ids(ids):
        raise InputError(
            "expected integer token ids [N, T]; pass them as a tensor, or as a dict of input_ids and attention_mask"
        )
    if mask is not None and mask.shape != ids.shape:
        raise InputError(f"{masks} has shape {tuple(mask.shape)}, {writes} {tuple(ids.shape)}; the shapes must be equal")
    if mask is not None and not mask[:, -1].all():
        raise InputError(
            "the texts are padded on the right; pad them on the left for generation (tokenizer.padding_side = 'left')"
        )
    if continuation is not None and not (_are_ids(continuation) and len(continuation) == len(ids)):
        raise InputError(f"the continuation must be integer token ids [{len(ids)}, n], one row per text")
    start = ids.shape[1]
    if continuation is None:
        whole = continue_greedily(model, inputs, ids, max_new_tokens, progress)
    else:
        whole = torch.cat([ids, continuation.to(ids)], 1)
    if whole.shape[1] == start:
        raise TargetError("no token was generated: the continuation is empty; pass token ids [N, n], or None to generate them")
    given = _append_ids(inputs, whole[:, :-1])
    others = _likeliest_others(model, given, whole[:, start:]) if contrast else None
    targets = [
        Logit(whole[:, t], position=t - 1, rather_than=None if others is None else others[:, t - start])
        for t in range(start, whole.shape[1])
    ]
    explanations = []
    with progressing("explanation", len(targets), progress) as advance:
        for e in Explainer(model, method).iter_targets(given, targets):
            explanations.append(e)
            advance(1)
    found = Generation(whole, start, tuple(explanations))
    return found if texts.tokenizer is None else found.with_tokens(texts.tokenizer)


@torch.no_grad()
def continue_greedily(model: Any, inputs: Tree, ids: Tensor, count: int, progress: Progress = False) -> Tensor:
    """Return the token ids `[N, T]` followed by up to `count` more, each the likeliest, until all texts have ended."""
    settings = (getattr(model, name, None) for name in ("generation_config", "config"))
    ends = next((end for s in settings if (end := getattr(s, "eos_token_id", None)) is not None), [])
    ends = torch.tensor(ends, device=ids.device).view(-1)
    padding = ends[0].to(ids) if len(ends) else ids.new_zeros(())  # behind the end of a text, while others go on
    ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    with progressing("generation", count, progress) as advance:
        for _ in range(count):
            given = Inputs.of(_append_ids(inputs, ids))
            logits = logits_of(given.call(model, given.parts))
            if not isinstance(logits, Tensor) or logits.dim() != 3:
                raise TargetError(
                    "the model returns no logits [N, T, vocabulary]; load it with a language model head (AutoModelForCausalLM)"
                )
            likeliest = logits[:, -1].argmax(-1).to(ids)
            ids = torch.cat([ids, torch.where(ended, padding, likeliest)[:, None]], 1)
            advance(1)
            ended |= torch.isin(ids[:, -1], ends)
            if ended.all():
                break
    return ids


@torch.no_grad()
def _likeliest_others(model: Any, inputs: Tree, written: Tensor) -> Tensor:
    """Return for each written token `[N, n]` the id of the likeliest other token in its place."""
    given = Inputs.of(inputs)
    logits = logits_of(given.call(model, given.parts))[:, -written.shape[1] :].clone()
    return logits.scatter(2, written[..., None], -torch.inf).argmax(2)


def check_token_count(max_new_tokens: Any) -> None:
    """Raise `InputError` if this is not a number of tokens."""
    if not isinstance(max_new_tokens, int) or isinstance(max_new_tokens, bool) or max_new_tokens < 1:
        raise InputError(f"max_new_tokens={value_repr(max_new_tokens)}; expected an int of at least 1")


def _are_ids(t: Any) -> bool:
    return isinstance(t, Tensor) and t.dim() == 2 and not t.is_floating_point()


def _id_input_names(parts: Mapping[str, Any]) -> tuple[str, str]:
    """Return the names of the token ids to continue and of their attention mask."""
    return (DECODER, "decoder_attention_mask") if DECODER in parts else ("input_ids", "attention_mask")


def _append_ids(inputs: Tree, ids: Tensor) -> Tree:
    """Return the inputs with longer token ids, an attention mask of the same length, and new tokens of the type of texts, 0."""
    if isinstance(inputs, Tensor):
        return ids
    writes, masks = _id_input_names(inputs)
    longer = {**inputs, writes: ids}
    for name, value in inputs.items():
        if name == masks or (name.endswith("token_type_ids") and writes != DECODER):
            longer[name] = torch.cat([value, value.new_full((len(ids), ids.shape[1] - value.shape[1]), name == masks)], 1)
    return longer


def _token_relevance(relevance: Tree) -> Tensor:
    texts = _text_leaves(relevance)
    return torch.cat([t.to(texts[0]) for t in texts], 1)


def _rounded(rows: list[list[float]]) -> list[list[float]]:
    """Return values of four digits, for short pages."""
    return [[float(f"{value:.4g}") for value in row] for row in rows]


def _text_leaves(nest: Tree) -> list[Tensor]:
    """Return the leaves of token ids, the encoder's before the decoder's."""
    return [nest] if isinstance(nest, Tensor) else [t for name in ("input_ids", DECODER) if (t := nest.get(name)) is not None]
