"""Token ids as readable strings."""

from collections.abc import Iterable
from typing import Any

from whence.errors import InputError

SPACE_MARKERS = ("Ġ", "▁")  # leading space in byte-level and SentencePiece vocabularies


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


def _readable(tokenizer: Any, piece: str) -> str:
    if piece in tokenizer.all_special_tokens or not piece:
        return piece
    text = tokenizer.convert_tokens_to_string([piece])
    return f" {text}" if piece.startswith(SPACE_MARKERS) and not text.startswith(" ") else text
