"""Token ids as readable strings."""

from collections.abc import Iterable, Sequence
from typing import Any

from whence.errors import InputError

SPACE_MARKERS = ("Ġ", "▁")  # leading space in byte-level and SentencePiece vocabularies
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what tokenizers decode a part of a character to
WINDOW = 8  # tokens before a token that its text may depend on


def token_strings(tokenizer: Any, ids: Iterable[int]) -> list[str]:
    """Return each id as readable text, with leading spaces; `tokenizer` is Hugging Face's, or a function of a list of ids.

    >>> token_strings(tokenizer, [464, 3797])
    ['The', ' cat']
    """
    if not hasattr(tokenizer, "convert_ids_to_tokens"):
        if not callable(tokenizer):
            raise InputError(
                f"expected a Hugging Face tokenizer, a function of ids or a list of strings, got {type(tokenizer).__name__}"
            )
        told: Any = tokenizer(list(map(int, ids)))
        return list(map(str, told))
    return [_readable(tokenizer, piece) for piece in tokenizer.convert_ids_to_tokens(list(map(int, ids)))]


def text_strings(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return the tokens of one text as they read in it, so that they can be joined.

    Pieces of a word have no space in front, whatever the vocabulary marks. A character that several tokens make up is that of
    the last of them, and the others are empty.

    >>> "".join(text_strings(tokenizer, tokenizer("unaffable cats")["input_ids"]))
    'unaffable cats'
    """
    pieces = token_strings(tokenizer, ids)
    if not hasattr(tokenizer, "decode") or not hasattr(tokenizer, "convert_ids_to_tokens"):
        return pieces
    special, found = set(tokenizer.all_special_ids), []
    start = done = 0  # where the text since the last special token starts, and up to where it is in `found`
    for i, token in enumerate(ids):
        if token in special:
            found.append(pieces[i])
            start = done = i + 1
            continue
        first = max(start, done - WINDOW)
        before, now = (_decoded(tokenizer, ids[first:stop]) for stop in (done, i + 1))
        if now.endswith(INCOMPLETE) and i + 1 < len(ids):
            found.append("")
            continue
        text = now[len(before) :] if now.startswith(before) else pieces[i]
        found.append(pieces[i] if done == start and pieces[i].strip() == text.strip() else text)
        done = i + 1
    return found


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(list(ids), clean_up_tokenization_spaces=False) if ids else ""


def _readable(tokenizer: Any, piece: str) -> str:
    if piece in tokenizer.all_special_tokens or not piece:
        return piece
    text = tokenizer.convert_tokens_to_string([piece])
    return f" {text}" if piece.startswith(SPACE_MARKERS) and not text.startswith(" ") else text
