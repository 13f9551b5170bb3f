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

    def __call__(self, text: str | Sequence[str], return_tensors: str | None = None, **_: Any) -> dict[str, Any]:
        texts = [text] if isinstance(text, str) else list(text)
        rows = [self._ids(one) for one in texts]
        if return_tensors is None:
            return {"input_ids": rows[0] if isinstance(text, str) else rows}
        if len(set(map(len, rows))) > 1:
            raise ValueError("the texts have different numbers of words, and there is no padding; pass one at a time")
        return {"input_ids": torch.tensor(rows, dtype=torch.long)}

    def _ids(self, text: str) -> list[int]:
        known = {word: i for i, word in enumerate(self.vocabulary)}
        return [known.get(word, self.unk_token_id) for word in PATTERN.findall(text.lower())]

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """Return the word of each id."""
        return [self.vocabulary[int(i)] for i in ids]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Return words joined by spaces, punctuation without."""
        return re.sub(r" ([.,!?;:])", r"\1", " ".join(tokens))

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        """Return the text of ids."""
        return self.convert_tokens_to_string(self.convert_ids_to_tokens(ids))
