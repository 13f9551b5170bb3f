"""A tokenizer of whole words with the interface of a Hugging Face tokenizer, as far as whence uses it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

PATTERN = re.compile(r"[\w']+|[^\w\s]")
UNKNOWN = "<unk>"


@dataclass(frozen=True)
class WordTokenizer:
    """A tokenizer that maps each lower-case word of a vocabulary to an id, and all other words to `<unk>`.

    >>> WordTokenizer(["<unk>", "the", "soup"])("The soup!")["input_ids"]
    [1, 2, 0]

    Args:
        vocabulary: The words by id; the first is `<unk>`.
    """

    vocabulary: Sequence[str]

    unk_token_id = 0
    all_special_ids = (0,)
    all_special_tokens = (UNKNOWN,)

    def __call__(self, text: str, return_tensors: str | None = None, add_special_tokens: bool = True) -> dict[str, Any]:
        known = {word: i for i, word in enumerate(self.vocabulary)}
        ids = [known.get(word, self.unk_token_id) for word in PATTERN.findall(text.lower())]
        return {"input_ids": ids if return_tensors is None else torch.tensor([ids], dtype=torch.long)}

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """Return the word of each id."""
        return [self.vocabulary[int(i)] for i in ids]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Return words joined by spaces, punctuation without."""
        return re.sub(r" ([.,!?;:])", r"\1", " ".join(tokens))

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        """Return the text of ids."""
        return self.convert_tokens_to_string(self.convert_ids_to_tokens(ids))
