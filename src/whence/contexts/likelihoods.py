"""Log-probabilities of a response after prompts in which some sources are left out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from whence.contexts.prompt import Prompt
from whence.core.inputs import Inputs
from whence.core.progress import Progress, progress
from whence.errors import TargetError
from whence.lrp.engine.model_outputs import logits_of

LOGITS_PER_BATCH = 2**26


@dataclass(frozen=True)
class ResponseLikelihood:
    """The log-probabilities of the tokens of one response, for any choice of sources.

    Args:
        model: A causal language model.
        prompt: The prompt with all sources.
        response: Token ids of the response, `[R]`.
        mask: Whether to mask the tokens of absent sources, which keeps the positions of the others; else they are removed.
    """

    model: Callable[..., Any]
    prompt: Prompt
    response: Tensor
    mask: bool = False

    @torch.no_grad()
    def __call__(self, present: Tensor, shown: Progress = False) -> Tensor:
        """Return the log-probability of each token of the response, `[n, R]`, for sources `[n, K]` that are present."""
        rows, found = list(present), []
        with progress("sources", len(rows), shown) as advance:
            while rows:
                size = self._batch_size(len(rows))
                found.append(self._of_batch(rows[:size]))
                advance(len(rows[:size]))
                rows = rows[size:]
        return torch.cat(found)

    def _batch_size(self, left: int) -> int:
        config = getattr(self.model, "config", None)
        vocabulary = getattr(config, "vocab_size", None) or 2**16
        return max(1, min(left, LOGITS_PER_BATCH // (vocabulary * (len(self.prompt) + len(self.response)))))

    def _of_batch(self, present: Sequence[Tensor]) -> Tensor:
        """Return the log-probabilities in one batch, whose texts are padded on the right."""
        ids, masks = zip(*map(self._text, present), strict=True)
        longest = max(map(len, ids))
        padded = {
            "input_ids": torch.stack([_padded(row, longest) for row in ids]),
            "attention_mask": torch.stack([_padded(row, longest) for row in masks]),
        }
        logits = logits_of(Inputs.of(padded).beside(self.model).run(self.model))
        if not isinstance(logits, Tensor) or logits.dim() != 3:
            raise TargetError(
                "the model returns no logits [N, T, vocabulary]; load it with a language model head (AutoModelForCausalLM)"
            )
        written = len(self.response)
        stops = [len(row) for row in ids]
        rows = torch.stack([logits[i, stop - written - 1 : stop - 1] for i, stop in enumerate(stops)])
        return token_log_probabilities(rows, self.response).cpu()

    def _text(self, present: Tensor) -> tuple[Tensor, Tensor]:
        """Return the token ids of the prompt and the response, and their attention mask."""
        kept = self.prompt.kept(present)
        ids = self.prompt.ids if self.mask else self.prompt.ids[kept]
        mask = kept if self.mask else torch.ones_like(ids)
        return torch.cat([ids, self.response]), torch.cat([mask.long(), torch.ones_like(self.response)])


def token_log_probabilities(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the log-probability of each of `tokens` `[R]` in logits `[n, R, vocabulary]`, `[n, R]` in float64."""
    index = tokens.to(logits.device).expand(len(logits), -1)[..., None]
    return logits.double().log_softmax(-1).gather(2, index)[..., 0]


def _padded(row: Tensor, length: int) -> Tensor:
    return torch.cat([row, row.new_zeros(length - len(row))])
