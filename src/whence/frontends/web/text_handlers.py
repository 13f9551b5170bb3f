"""Handlers of questions to language models: generated texts, and the sources of an answer."""

from typing import Any

from whence.contexts.sources import sources
from whence.core.generation import explain_generation
from whence.errors import InputError
from whence.frontends.web.progress_counter import report_progress
from whence.frontends.web.schemas import GenerationRequest, SourcesRequest
from whence.frontends.web.served_models import models
from whence.models.loaded_model import LoadedModel


def generation_handler(question: GenerationRequest) -> dict[str, Any]:
    """Return a generated text, and the relevance of all tokens for each new one."""
    loaded = _language_model(question.model)
    if (question.text is None) == (question.messages is None):
        raise InputError("give either a text or chat messages")
    prompt = question.text if question.messages is None else [message.model_dump() for message in question.messages]
    found = explain_generation(
        loaded.model,
        prompt,
        max_new_tokens=question.max_new_tokens,
        contrast=question.contrast,
        tokenizer=loaded.text.tokenizer,  # type: ignore[union-attr]
        progress=report_progress,
    )
    return {
        "tokens": found.words[0],
        "start": found.start,
        "relevance": [[round(value, 6) for value in row] for row in found.relevance[:, 0].tolist()],
        "outputs": [float(e.output[0]) for e in found.explanations],
        "sums": [float(e.conservation.relevance[0]) for e in found.explanations],
    }


def sources_handler(question: SourcesRequest) -> dict[str, Any]:
    """Return the statements of a response, and the effect of each source on them."""
    loaded = _language_model(question.model)
    names = [document.name for document in question.documents]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"two documents are named {twice!r}; rename one of them")
    found = sources(
        loaded.model,
        {document.name: document.text for document in question.documents},
        question.question,
        question.response or None,
        tokenizer=loaded.text.tokenizer,  # type: ignore[union-attr]
        max_new_tokens=question.max_new_tokens,
        progress=report_progress,
    )
    return {
        "response": found.response,
        "statements": found.statement_names,
        "sources": [{"name": source.name, "text": source.text} for source in found.sources],
        "scores": found.scores.tolist(),
        "support": found.support.tolist(),
        "evaluations": found.n_evaluations,
    }


def _language_model(name: str) -> LoadedModel:
    loaded = models[name]
    if loaded.text is None or loaded.class_names:
        raise InputError(f"{name} writes no texts; choose a causal language model, such as --model hf:FOLDER")
    return loaded
