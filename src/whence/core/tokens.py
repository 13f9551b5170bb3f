"""Token ids as people read them."""

from collections.abc import Iterable
from typing import Any

from whence.errors import InputError

SPACE_MARKERS = ("Ġ", "▁")  # how byte-level and SentencePiece vocabularies write a space in front


def token_strings(tokenizer: Any, ids: Iterable[int]) -> list[str]:
    """Each id as readable text, spaces in front kept; `tokenizer` is Hugging Face's, or a function of a list of ids.

    >>> words_of(tokenizer, [464, 3797])
    ['The', ' cat']
    """
    if not hasattr(tokenizer, "convert_ids_to_tokens"):
        if not callable(tokenizer):
            raise InputError(
                f"words are told by a tokenizer, a function of ids or a list of words, not {type(tokenizer).__name__}"
            )
        told: Any = tokenizer(list(map(int, ids)))
        return list(map(str, told))
    return [_readable(tokenizer, piece) for piece in tokenizer.convert_ids_to_tokens(list(map(int, ids)))]


def _readable(tokenizer: Any, piece: str) -> str:
    if piece in tokenizer.all_special_tokens or not piece:
        return piece
    text = tokenizer.convert_tokens_to_string([piece])
    return f" {text}" if piece.startswith(SPACE_MARKERS) and not text.startswith(" ") else text
