"""A prompt of sources and a query, of which some sources can be left out."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from whence.core.passages import split_paragraphs, split_sentences
from whence.core.texts import are_messages, render_chat
from whence.errors import InputError, value_repr

CLOSING = ".,;:!?)]}%’”»…"
Place = tuple[str, str, int, int]  # name, text, first character, and the one after the last
SPLITS = {"sentence": split_sentences, "paragraph": split_paragraphs}


@dataclass(frozen=True)
class Source:
    """A part of the context: a sentence, a document or a message, with its position in the prompt.

    Args:
        name: Its name: "document 2", "user 1", or its number.
        text: Its text.
        tokens: The positions of its tokens in the prompt.
    """

    name: str
    text: str
    tokens: tuple[int, ...] = field(repr=False)


@dataclass(frozen=True)
class Prompt:
    """Token ids of a prompt, and the sources in it."""

    ids: Tensor  # [T]
    sources: tuple[Source, ...]
    text: str
    of_chat: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def membership(self) -> Tensor:
        """The tokens that belong to each source, a bool tensor `[K, T]`."""
        found = torch.zeros(len(self.sources), len(self.ids), dtype=torch.bool)
        for k, source in enumerate(self.sources):
            found[k, list(source.tokens)] = True
        return found

    def kept(self, present: Tensor) -> Tensor:
        """Return the tokens that remain for sources `[K]` that are present, a bool tensor `[T]`."""
        return ~(self.membership & ~present[:, None]).any(0)


def encode_response(tokenizer: Any, prompt: Prompt, response: str) -> Tensor:
    """Return the token ids of a response as they follow the prompt, `[R]`.

    They are those of the whole text: alone, a response may get a space in front that it does not have there.
    """
    if not prompt.of_chat:
        response = joined(prompt.text, response)[len(prompt.text) :]
    whole = torch.tensor(tokenizer(prompt.text + response, add_special_tokens=not prompt.of_chat)["input_ids"])
    count = len(prompt)
    if len(whole) > count and torch.equal(whole[:count], prompt.ids):
        return whole[count:]
    return torch.tensor(tokenizer(response, add_special_tokens=False)["input_ids"])  # merged with the end of the prompt


def joined(before: str, after: str) -> str:
    """Return two texts with a space between them where a reader expects one: not in Chinese, nor before a full stop."""
    if not before or not after or before[-1].isspace() or after[0].isspace() or after[0] in CLOSING:
        return before + after
    wide = any(unicodedata.east_asian_width(letter) in "WF" for letter in (before[-1], after[0]))
    return before + after if wide else f"{before} {after}"


def make_prompt(tokenizer: Any, context: Any, query: str, split: str) -> Prompt:
    """Return the prompt of a context and a query.

    A text is split into sentences or paragraphs. A model with a chat template gets the context and the query as one message of
    the user; messages get the query as one more message.
    """
    if isinstance(context, str):
        if split not in SPLITS:
            raise InputError(f"split={value_repr(split)}; choose {' or '.join(map(repr, SPLITS))}")
        pieces, text = [(str(i + 1), p.text) for i, p in enumerate(SPLITS[split](context))], context.strip()
    elif isinstance(context, Mapping):
        pieces, text = [(str(name), part) for name, part in context.items()], None
    elif are_messages(context):
        return _of_messages(tokenizer, context, query)
    elif isinstance(context, Sequence):
        pieces, text = [(f"document {i + 1}", part) for i, part in enumerate(context)], None
    else:
        raise InputError(
            f"context is of type {type(context).__name__}; expected a text, a list of documents, a dict of documents by "
            "name, or a list of chat messages"
        )
    _check_texts(pieces)
    text = "\n\n".join(part.strip() for _, part in pieces) if text is None else text
    if getattr(tokenizer, "chat_template", None):
        return _of_documents(tokenizer, f"{text}\n\n{query}", pieces)
    return _located(tokenizer, joined(text, query), _places(joined(text, query), pieces), special=True)


def _of_messages(tokenizer: Any, messages: Sequence[Mapping[str, Any]], query: str) -> Prompt:
    """Return the prompt of chat messages, each a source, and the query as one more message of the user."""
    if not getattr(tokenizer, "chat_template", None):
        raise InputError("the tokenizer has no chat template for messages; pass the context as a text or a list of documents")
    pieces = [(f"{m['role']} {i + 1}", m["content"]) for i, m in enumerate(messages)]
    _check_texts(pieces)
    asked = [*messages, {"role": "user", "content": query}] if query else list(messages)
    text = render_chat(tokenizer, asked)
    return _located(tokenizer, text, _places_of_messages(tokenizer, asked, text)[: len(pieces)], special=False)


def _of_documents(tokenizer: Any, content: str, pieces: list[tuple[str, str]]) -> Prompt:
    """Return the prompt of documents and the query in one message of the user."""
    message = [{"role": "user", "content": content}]
    text = render_chat(tokenizer, message)
    ((_, shown, start, _),) = _places_of_messages(tokenizer, message, text)
    places = [(name, piece, start + a, start + b) for name, piece, a, b in _places(shown, pieces)]
    return _located(tokenizer, text, places, special=False)


def _check_texts(pieces: list[tuple[str, str]]) -> None:
    if not pieces:
        raise InputError("the context is empty; pass a text, documents or messages")
    for name, text in pieces:
        if not isinstance(text, str):
            raise InputError(f"source {name!r} is of type {type(text).__name__}; expected a text")
        if not text.strip():
            raise InputError(f"source {name!r} is empty; leave it out")


def _places(text: str, pieces: list[tuple[str, str]]) -> list[Place]:
    """Return where the sources stand in a text, one after the other."""
    found, after = [], 0
    for name, piece in pieces:
        start = text.find(piece.strip(), after)
        if start < 0:
            raise InputError(f"the chat template changes the text of source {name!r}; pass it as a document")
        after = start + len(piece.strip())
        found.append((name, piece.strip(), start, after))
    return found


def _places_of_messages(tokenizer: Any, messages: Sequence[Mapping[str, Any]], text: str) -> list[Place]:
    """Return where the messages stand in the text of the chat template, whose own text may hold the same words."""
    marks = [f"\N{INVISIBLE SEPARATOR}message {i}\N{INVISIBLE SEPARATOR}" for i in range(len(messages))]
    marked = render_chat(tokenizer, [{**m, "content": mark} for m, mark in zip(messages, marks, strict=True)])
    found, at = [], 0
    for i, (message, mark) in enumerate(zip(messages, marks, strict=True)):
        before, is_there, marked = marked.partition(mark)
        at, content = at + len(before), message["content"]
        shown = next((part for part in (content, content.strip()) if text.startswith(part, at)), None)
        if not is_there or shown is None:
            raise InputError(f"the chat template changes the text of message {i + 1}; pass the context as documents")
        start = at + len(shown) - len(shown.lstrip())
        found.append((f"{message['role']} {i + 1}", shown.strip(), start, start + len(shown.strip())))
        at += len(shown)
    return found


def _located(tokenizer: Any, text: str, places: list[Place], special: bool) -> Prompt:
    """Return the prompt of a text with sources at these places."""
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            "the tokenizer does not tell which characters a token stands for; load a fast one: "
            "AutoTokenizer.from_pretrained(…, use_fast=True)"
        )
    encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    while special and len(ids) > 1 and ids[-1] in tokenizer.all_special_ids:  # an end that the response would stand behind
        ids, offsets = ids[:-1], offsets[:-1]
    firsts = [_first_letter(text, a, b) if a < b else -1 for a, b in offsets]
    sources = tuple(
        Source(name, piece, tuple(i for i, at in enumerate(firsts) if start <= at < stop))
        for name, piece, start, stop in places
    )
    return Prompt(torch.tensor(ids), sources, text, not special)


def _first_letter(text: str, start: int, stop: int) -> int:
    """Return the position of the first character of a token that is no space."""
    return start + len(text[start:stop]) - len(text[start:stop].lstrip()) if text[start:stop].strip() else start
