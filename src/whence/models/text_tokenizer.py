"""Tokenization of texts for Hugging Face models."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from whence.core.tokens import token_strings
from whence.errors import InputError, first_line


@dataclass(frozen=True)
class TextTokenizer:
    """The tokenizer of a Hugging Face model."""

    tokenizer: Any

    def read(self, text: str) -> dict[str, Tensor]:
        """Return the text as a batch of one: input_ids and the other inputs of the model, each `[1, T]`."""
        if not text.strip():
            raise InputError("the text is empty")
        try:
            encoded = dict(self.tokenizer(text, return_tensors="pt"))
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"the tokenizer failed on this text: {first_line(error)}") from error
        if not encoded["input_ids"].numel():
            raise InputError("the tokenizer returned no tokens for this text")
        return encoded

    @property
    def blank_id(self) -> int:
        """The id of the token that replaces removed tokens: mask, or else padding, unknown or end of sequence."""
        names = ("mask_token_id", "pad_token_id", "unk_token_id", "eos_token_id")
        known = (getattr(self.tokenizer, name, None) for name in names)
        found = next((i for i in known if i is not None), None)
        if found is None:
            raise InputError("the tokenizer has no mask, pad or unknown token; pass baselines in Python")
        return int(found)

    def token_id(self, text: str) -> int:
        """Return the token id of a text that is a single token; raise `InputError` if it is not."""
        found = [self.tokenizer(t, add_special_tokens=False)["input_ids"] for t in (text, text.lstrip())]
        ids = min(found, key=len)  # some vocabularies put the space in front themselves
        if len(ids) != 1:
            written = ", ".join(map(repr, token_strings(self.tokenizer, ids)))
            raise InputError(f"{text!r} is not a single token but {len(ids)}: {written}; choose one of them or give a token id")
        return int(ids[0])
