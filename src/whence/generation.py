"""explain_generation(): why did a causal language model write each of the tokens that it wrote?"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from whence.errors import InputError, TargetError
from whence.explain import Method, explain_targets
from whence.explanation import Explanation
from whence.inputs import Inputs, Nest, check_model
from whence.targets import Logit


@dataclass(frozen=True)
class Generation:
    """A text that a model continued, and an explanation of each token it added.

    >>> written = whence.explain_generation(model, {"input_ids": ids}, max_new_tokens=12)
    >>> written.relevance[3]            # of everything before the fourth new token; later tokens have 0
    >>> written.with_tokens(tokenizer).save("why.png")
    """

    ids: Tensor  # [N, T + n]
    start: int  # T, where the new tokens begin
    explanations: tuple[Explanation, ...]  # n

    @property
    def relevance(self) -> Tensor:
        """`[n, N, T + n − 1]`: by new token and sample, the relevance of every token that may come before."""
        return torch.stack([_of_tokens(e.relevance) for e in self.explanations])

    def __len__(self) -> int:
        return len(self.explanations)

    def __iter__(self) -> Iterator[Explanation]:
        return iter(self.explanations)

    def __getitem__(self, index: int) -> Explanation:
        return self.explanations[index]

    def with_tokens(self, tokenizer: Any) -> "Generation":
        """The same with tokens as words, for pictures and pages."""
        return Generation(self.ids, self.start, tuple(e.with_tokens(tokenizer) for e in self.explanations))

    def save(self, path: str) -> str:
        """Write a picture: a row for each new token, a column for each token before it."""
        from whence.show import tokens

        tokens.grid(self).savefig(path)
        return path


def explain_generation(
    model: Callable[..., Any],
    inputs: Nest,
    *,
    max_new_tokens: int = 20,
    continuation: Tensor | None = None,
    method: Method | str | None = None,
) -> Generation:
    """Let a causal model continue a text, likeliest token first, and explain the logit of each token it adds.

    `inputs` are token ids `[N, T]` or a dict with `input_ids`, all of one length. A `continuation` `[N, n]` written before
    (by sampling, say) is explained instead. All of it takes one forward pass and a backward pass for each token.
    """
    check_model(model)
    parts = {"input_ids": inputs} if isinstance(inputs, Tensor) else dict(inputs)
    ids, mask = parts.get("input_ids"), parts.get("attention_mask")
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point() or set(parts) - {"input_ids", "attention_mask"}:
        raise InputError("a generation continues token ids [N, T]: pass them, or a dict of input_ids and attention_mask")
    if mask is not None and not bool(mask[:, -1].all()):
        raise InputError("the texts are padded on the right, where they are to be continued; pad them on the left")
    Inputs.of(ids)

    def call(ids: Tensor) -> Any:
        if isinstance(inputs, Tensor):
            return model(ids)
        return model(**_extended(parts, ids))

    start = ids.shape[1]
    whole = _continued(model, call, ids, max_new_tokens) if continuation is None else torch.cat([ids, continuation.to(ids)], 1)
    if whole.shape[1] == start:
        raise TargetError("nothing was generated; max_new_tokens and the continuation must not be empty")
    given = whole[:, :-1]
    targets = [Logit(whole[:, t], position=t - 1) for t in range(start, whole.shape[1])]
    explained = given if isinstance(inputs, Tensor) else _extended(parts, given)
    return Generation(whole, start, tuple(explain_targets(model, explained, targets, method=method)))


@torch.no_grad()
def _continued(model: Any, call: Callable[[Tensor], Any], ids: Tensor, count: int) -> Tensor:
    ends = getattr(getattr(model, "config", None), "eos_token_id", None)
    ends = torch.tensor([] if ends is None else ends, device=ids.device).view(-1)
    for _ in range(count):
        outputs = call(ids)
        logits = getattr(outputs, "logits", outputs)
        if not isinstance(logits, Tensor) or logits.dim() != 3:
            raise TargetError("the model gives no logits [N, T, vocabulary] to continue a text from")
        ids = torch.cat([ids, logits[:, -1:].argmax(-1).to(ids)], 1)
        if torch.isin(ids[:, -1], ends).all():
            break
    return ids


def _extended(parts: dict[str, Tensor], ids: Tensor) -> dict[str, Tensor]:
    """The same inputs for a longer text."""
    if "attention_mask" not in parts:
        return {"input_ids": ids}
    mask = parts["attention_mask"]
    return {"input_ids": ids, "attention_mask": torch.cat([mask, mask.new_ones(len(ids), ids.shape[1] - mask.shape[1])], 1)}


def _of_tokens(relevance: Nest) -> Tensor:
    return relevance["input_ids"] if isinstance(relevance, dict) else relevance
