"""Which sources in its context made a language model write a statement."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from whence.contexts.ablation_design import choose_ablations
from whence.contexts.attention_gate import gate_relevance
from whence.contexts.likelihoods import ResponseLikelihood
from whence.contexts.prompt import Prompt, Source, encode_response, make_prompt
from whence.contexts.source_posterior import posterior_effects
from whence.core.argument_checks import check_arguments
from whence.core.devices import to_device_of
from whence.core.explain import explain_targets
from whence.core.files import Rows, text_writer
from whence.core.generation import check_token_count, continue_greedily
from whence.core.inputs import Inputs, check_model
from whence.core.passages import Passage, find_passages, shorten_line, split_sentences
from whence.core.progress import Progress
from whence.core.result import Result
from whence.core.targets import Span
from whence.core.texts import TextModel, is_encoder_decoder
from whence.core.tokens import text_strings
from whence.errors import ContextWarning, InputError, TargetError, value_repr
from whence.lrp.engine.model_outputs import logits_of
from whence.methods.registry import Method, resolve_method

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Ablation = Literal["remove", "mask"]
LEAST_DEVIATION = 0.6  # of log-probabilities over ablations, below which sources hardly matter
BEST_ALONE = 3  # sources of which each is tried alone for `support`
SHORT = 80  # characters of a source in a table or figure


@dataclass(frozen=True)
class Statement:
    """A part of the response.

    Args:
        text: Its text.
        start: The first of its tokens, counted from the start of the response.
        stop: The token after the last.
        log_probability: Its log-probability after the whole prompt, ln p.
    """

    text: str
    start: int
    stop: int
    log_probability: float


@dataclass(frozen=True, eq=False)
class SourceAttribution(Result):
    """The effect of every source in the context on every statement of a response.

    >>> found = whence.sources(model, documents, "Who has the ball?", tokenizer=tokenizer)
    >>> found.ranking(0)                # the sources of the first statement, the most important first
    >>> found.save("sources.html")      # a page: click on a statement to see its sources

    Args:
        sources: The sources.
        query: The question, or the beginning of the response.
        response: The text of the response.
        statements: The statements.
        scores: Estimate of by how much the log-probability of each statement falls if a source is left out, `[statements, K]`,
            on average over which others are present: positive where the source made the model write it.
        relevance: Relevance of each source for each statement by one backward pass, `[statements, K]`: the prior of `scores`,
            in proportion only.
        support: For each statement, `[statements]`, by how much the best of its three sources of most relevance alone raises
            its log-probability over that without any context. Near or below 0, nothing in the context supports it. It measures
            what the model relies on, not what is true.
        deviation: Standard deviation of the log-probability of each statement over the evaluations, `[statements]`.
        n_evaluations: How many prompts the model evaluated.
        ablation: Whether sources were removed or masked.
    """

    sources: tuple[Source, ...]
    query: str
    response: str
    statements: tuple[Statement, ...]
    scores: Tensor  # [statements, K]
    relevance: Tensor  # [statements, K]
    support: Tensor  # [statements]
    deviation: Tensor  # [statements]
    n_evaluations: int
    ablation: Ablation

    def __len__(self) -> int:
        return len(self.statements)

    def __repr__(self) -> str:
        lines = [f"Sources of {len(self)} statements among {len(self.sources)}, by {self.n_evaluations} evaluations"]
        for i, statement in enumerate(self.statements):
            source, score = self.ranking(i)[0]
            written, read = (shorten_line(part.text, SHORT) for part in (statement, source))
            lines.append(f"  {written!r} ← {source.name}: {read!r} ({score:+.2f})")
        return "\n".join(lines)

    def ranking(self, statement: int = 0) -> list[tuple[Source, float]]:
        """Return the sources of a statement with their scores, the largest first."""
        order = self.scores[statement].argsort(descending=True, stable=True).tolist()
        return [(self.sources[k], float(self.scores[statement, k])) for k in order]

    @property
    def table(self) -> Rows:
        """Rows, one for each statement and source, ranked by score."""
        return [
            {
                "statement": i, "text": statement.text, "rank": rank, "source": source.name, "source_text": source.text,
                "score": score, "support": float(self.support[i]),
            }
            for i, statement in enumerate(self.statements)
            for rank, (source, score) in enumerate(self.ranking(i))
        ]  # fmt: skip

    @property
    def statement_names(self) -> list[str]:
        """The texts of the statements, and "the whole response" for one that is all of it beside others."""
        whole = self.response.strip() if len(self.statements) > 1 else None
        return ["the whole response" if s.text == whole else s.text for s in self.statements]

    def figure(self) -> "Figure":
        """Return a figure of the scores: bars for one statement, else a matrix of sources by statements."""
        from whence.plotting.source_scores import source_figure

        names = [f"{source.name}: {source.text}" for source in self.sources]
        return source_figure(names, self.statement_names, self.scores)

    def save(self, path: str | Path) -> Path:
        """Save a figure (.png, .jpg, .pdf, .svg), a page (.html) or the table (.csv, .json), and return the path."""
        return self._save(path, {".html": text_writer(self._page)})

    def _page(self) -> str:
        from whence.plotting.html_pages import render_page
        from whence.plotting.token_text import styled_tokens

        texts = [source.text for source in self.sources]
        return render_page("sources.html", found=self, effects=[styled_tokens(texts, scores) for scores in self.scores])


@check_arguments
def sources(
    model: Callable[..., Any],
    context: Any,
    query: str = "",
    response: str | None = None,
    *,
    tokenizer: Any = None,
    statements: Sequence[str] | None = None,
    n_ablations: int = 8,
    ablation: Ablation = "remove",
    split: Literal["sentence", "paragraph"] = "sentence",
    method: Method | str | None = None,
    max_new_tokens: int = 64,
    seed: int = 0,
    progress: Progress = True,
) -> SourceAttribution:
    """Find which sources in its context made a language model write its response.

    >>> found = whence.sources(model, documents, "Who has the ball?", tokenizer=tokenizer)
    >>> found.ranking(0)
    >>> found.save("sources.html")

    A backward pass for each statement gives the relevance of every source. `n_ablations` evaluations of the prompt with other
    subsets of the sources refine it: the scores are the posterior mean of a Gaussian process whose prior mean is the relevance.
    The subsets are chosen in advance, and all statements share their evaluations.

    Args:
        model: A causal language model in eval mode, as of transformers.
        context: A text, which is split into sentences; a list of documents, or a dict of them by name; or chat messages
            (dicts of "role" and "content").
        query: The question or the beginning of the response; the last message of the user where the tokenizer has a chat
            template.
        response: The response; generated greedily if None.
        tokenizer: The fast tokenizer of the model; not needed for a pipeline of transformers.
        statements: Parts of the response to explain. By default its sentences, and the whole if there are several.
        n_ablations: Number of subsets of the sources to evaluate besides the whole context, no context and the three sources of
            most relevance alone, which `support` needs. As many as there are sources are enough.
        ablation: "remove" removes the tokens of a source, so that those after it move up; "mask" masks attention to them.
        split: How to split a context that is one text: by "sentence" or "paragraph".
        method: The method of the relevance, for the sum of the logits of a statement. By default a gate on the attention to
            each source where the model takes a mask of floats, as most of transformers do, and LRP else or beyond 1024 tokens.
        max_new_tokens: The largest number of tokens to generate.
        seed: Seed of the choice of subsets.
        progress: Whether to show a progress bar, or a function that is called with (done, total) instead.

    Returns:
        A `SourceAttribution`.

    Raises:
        InputError: The context is empty, the statement is not a part of the response, or the tokenizer is not a fast one.
        TargetError: The model returns no logits `[N, T, vocabulary]`, or no token is generated.

    References:
        The task: Cohen-Wang et al. 2024 (ContextCite).
    """
    texts = TextModel.of(model, tokenizer)
    model, tokenizer = texts.model, texts.tokenizer
    check_model(model)
    _check_settings(query, n_ablations, ablation, seed)
    check_token_count(max_new_tokens)
    if is_encoder_decoder(model):
        raise InputError("sources() explains causal language models; this one is an encoder-decoder: use explain_generation()")
    prompt = make_prompt(tokenizer, context, query, split)
    _check_prompt(prompt, ablation)
    _check_length(model, len(prompt), max_new_tokens if response is None else 0)
    written = _response(model, tokenizer, prompt, response, max_new_tokens, progress)
    _check_length(model, len(prompt) + len(written), 0)
    _check_causal(model, prompt, written)
    parts = _statements(tokenizer, written, statements)
    relevance = _relevance(model, prompt, written, parts, method)
    likelihood = ResponseLikelihood(model, prompt, written, ablation == "mask")
    anyway = _anyway(relevance)
    mean = (relevance / relevance.norm(dim=1, keepdim=True).clamp(min=1e-30)).abs().mean(0)
    designed = choose_ablations(mean, n_ablations, anyway.unique(dim=0), seed)
    evaluations, index = torch.cat([anyway, designed]).unique(dim=0, return_inverse=True)
    whole, alone = index[0], index[1 : len(anyway)]
    tokens = likelihood(evaluations, progress)
    outputs = torch.stack([tokens[:, part.start : part.stop].sum(1) for part in parts])  # [statements, evaluations]
    scores = torch.stack([posterior_effects(r, evaluations, f) for r, f in zip(relevance, outputs, strict=True)])
    return SourceAttribution(
        prompt.sources,
        query,
        tokenizer.decode(written, skip_special_tokens=True),
        tuple(replace(part, log_probability=float(f[whole])) for part, f in zip(parts, outputs, strict=True)),
        scores,
        relevance,
        _support(relevance, outputs[:, alone]),
        _deviation(outputs),
        len(tokens),
        ablation,
    )


def _check_prompt(prompt: Prompt, ablation: str) -> None:
    nothing = ~prompt.membership.any(0)
    if not nothing.any():
        raise InputError("nothing is left of the prompt without its sources; pass a query")
    if ablation == "mask" and not nothing[-1]:
        raise InputError(
            "ablation='mask' cannot hide the last source, from whose last token the response is predicted; pass a query, or "
            "ablation='remove'"
        )


@torch.no_grad()
def _check_causal(model: Any, prompt: Prompt, written: Tensor) -> None:
    """Raise `InputError` if the logits of a token depend on later tokens, so that the model sees the response."""
    ids = torch.cat([prompt.ids, written]).expand(2, -1).clone()
    ids[1, -1] = ids[1, 0]
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    logits = logits_of(Inputs.of(given).beside(model).run(model))
    if not isinstance(logits, Tensor) or logits.dim() != 3:
        return  # refused with the reason when log-probabilities are read
    rounding = 1e-3 if logits.dtype.itemsize >= 4 else 0.25
    if not torch.allclose(logits[0, :-1], logits[1, :-1], atol=rounding):
        raise InputError(
            "the model is not causal: its predictions depend on later tokens, such as those of the response; pass a causal "
            "language model (AutoModelForCausalLM)"
        )


def _check_settings(query: Any, n_ablations: int, ablation: str, seed: Any) -> None:
    if not isinstance(seed, int):
        raise InputError(f"seed={value_repr(seed)}; expected an int")
    if not isinstance(query, str):
        raise InputError(f"query is of type {type(query).__name__}; expected a text")
    if not isinstance(n_ablations, int) or isinstance(n_ablations, bool) or n_ablations < 0:
        raise InputError(f"n_ablations={value_repr(n_ablations)}; expected a number of evaluations, 0 or more")
    if ablation not in ("remove", "mask"):
        raise InputError(f"ablation={value_repr(ablation)}; choose 'remove' or 'mask'")


def _check_length(model: Any, length: int, new: int) -> None:
    limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if isinstance(limit, int) and length + new > limit:
        raise InputError(
            f"the text of {length} tokens{f' and max_new_tokens={new}' if new else ''} exceeds the {limit} tokens that "
            "the model can read; pass fewer or shorter sources, or call sources() on one part of the context after the other, "
            "with the same response="
        )


def _response(model: Any, tokenizer: Any, prompt: Prompt, response: str | None, count: int, progress: Progress) -> Tensor:
    """Return the token ids of the response, `[R]`."""
    if response is not None:
        if not isinstance(response, str) or not response.strip():
            raise InputError(f"response={value_repr(response)}; expected a text that is not empty, or None to generate it")
        return encode_response(tokenizer, prompt, response)
    ids = to_device_of(prompt.ids[None], model)
    found = continue_greedily(model, {"input_ids": ids}, ids, count, progress)[0, len(prompt) :].cpu()
    special = torch.tensor(getattr(tokenizer, "all_special_ids", []) or [-1])
    ended = torch.isin(found, special).nonzero()
    found = found[: int(ended[0])] if len(ended) else found
    if not len(found):
        raise TargetError("the model generated no token; pass a response, or another query")
    return found


def _statements(tokenizer: Any, written: Tensor, wanted: Sequence[str] | None) -> list[Statement]:
    """Return the parts of the response to explain, with the tokens that they consist of."""
    words = text_strings(tokenizer, written.tolist())
    whole = "".join(words)
    if wanted is None:
        passages = split_sentences(whole) or [Passage(whole, 0, len(whole))]
        passages = [*passages, Passage(whole.strip(), 0, len(whole))] if len(passages) > 1 else passages
    elif isinstance(wanted, str) or not len(wanted):
        raise InputError("statements must be a list of texts; pass [statement]")
    else:
        passages = _in_order(whole, wanted)
    ends = list(accumulate(map(len, words)))
    found = []
    # a character of several tokens is the string of the last of them: the empty ones before it belong to it
    for passage in passages:
        start = next((i + 1 for i in reversed(range(len(words))) if words[i] and ends[i] <= passage.start), 0)
        stop = next((i + 1 for i in range(len(words)) if ends[i] >= passage.stop), len(words))
        found.append(Statement(passage.text.strip(), start, max(stop, start + 1), 0.0))
    return found


def _in_order(whole: str, parts: Sequence[str]) -> list[Passage]:
    """Return where the parts are in the response as whole words, one after the other where they can be."""
    found = []
    for part, place in zip(parts, find_passages(whole, parts, anywhere=True), strict=True):
        if place is None:
            raise InputError(f"the statement {value_repr(part)} is not a part of the response {value_repr(whole.strip())}")
        found.append(place)
    return found


def _relevance(model: Any, prompt: Prompt, written: Tensor, parts: Sequence[Statement], method: Method | str | None) -> Tensor:
    """Return the relevance of the sources for the statements, `[statements, K]`."""
    if method is None:
        found = gate_relevance(model, prompt, written, [slice(part.start, part.stop) for part in parts])
        if found is not None:
            return found
    begin = len(prompt)
    ids = to_device_of(torch.cat([prompt.ids, written])[None], model)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    targets = [Span(begin + part.start, begin + part.stop) for part in parts]
    found = explain_targets(model, inputs, targets, method=resolve_method(method))
    tokens = torch.stack([e.relevance["input_ids"][0, :begin].double().cpu() for e in found])
    return tokens @ prompt.membership.double().T


def _anyway(relevance: Tensor) -> Tensor:
    """Return the sources of the evaluations that need no design, `[2 + statements · best, K]`: all, none, and one each."""
    best = relevance.topk(min(BEST_ALONE, relevance.shape[1]), 1).indices.flatten()
    one = torch.zeros(len(best), relevance.shape[1], dtype=torch.bool)
    one[torch.arange(len(best)), best] = True
    everything = torch.ones(1, relevance.shape[1], dtype=torch.bool)
    return torch.cat([everything, ~everything, one])


def _support(relevance: Tensor, outputs: Tensor) -> Tensor:
    """Return by how much the best source alone raises the log-probability of each statement, `[statements]`."""
    count = len(relevance)
    best = outputs[:, 1:].reshape(count, count, -1)[torch.arange(count), torch.arange(count)]
    return best.amax(1) - outputs[:, 0]


def _deviation(outputs: Tensor) -> Tensor:
    """Return the standard deviation over evaluations; warn if the sources hardly matter."""
    found = outputs.std(1)
    if found.max() < LEAST_DEVIATION:
        warnings.warn(
            f"the response hardly depends on the context: its log-probability varies by {float(found.max()):.2f} when sources "
            "are left out, so that the ranking of the sources means little",
            ContextWarning,
            stacklevel=4,
        )
    return found
