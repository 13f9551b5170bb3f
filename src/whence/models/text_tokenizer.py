"""From a text to a model's input."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from whence.core.tokens import token_strings
from whence.errors import InputError, first_line


@dataclass(frozen=True)
class TextTokenizer:
    """The tokenizer of a model of Hugging Face's library."""

    tokenizer: Any

    def read(self, text: str) -> dict[str, Tensor]:
        """The text as a batch of one: input_ids and what else the model takes, each `[1, T]`."""
        if not text.strip():
            raise InputError("the text is empty")
        try:
            encoded = dict(self.tokenizer(text, return_tensors="pt"))
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"the tokenizer cannot read this text: {first_line(error)}") from error
        if not encoded["input_ids"].numel():
            raise InputError("the tokenizer returned no token for this text")
        return encoded

    @property
    def blank_id(self) -> int:
        """The token that stands for no word."""
        names = ("mask_token_id", "pad_token_id", "unk_token_id", "eos_token_id")
        known = (getattr(self.tokenizer, name, None) for name in names)
        found = next((i for i in known if i is not None), None)
        if found is None:
            raise InputError("the tokenizer has no mask, pad or unknown token; pass baselines in Python")
        return int(found)

    def token_id(self, text: str) -> int:
        """The one token that `text` is."""
        found = [self.tokenizer(t, add_special_tokens=False)["input_ids"] for t in (text, text.lstrip())]
        ids = min(found, key=len)  # some vocabularies put the space in front themselves
        if len(ids) != 1:
            written = ", ".join(map(repr, token_strings(self.tokenizer, ids)))
            raise InputError(f"{text!r} is not a single token but {len(ids)}: {written}; choose one of them or give a token id")
        return int(ids[0])
