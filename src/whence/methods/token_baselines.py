"""Default baselines of token ids: the mask or padding token that the tokenizer or the model's config names."""

import re
from typing import Any

import torch
from torch import Tensor, nn

from whence.core.inputs import Inputs, called_modules

NEUTRAL = ("mask_token_id", "pad_token_id")  # ids that stand for no word
STRUCTURAL = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")  # ids that stand for the ends of a text
WORDS = {"unk_token_id", *NEUTRAL}  # special ids of a tokenizer that stand for words, or for none
NOT_TEXT = {
    "mask", "masks", "type", "types", "position", "positions", "pos", "segment", "segments", "seg", "offsets", "length",
    "lengths", "labels",
}  # fmt: skip
ZERO_VECTORS = (
    "token ids are compared with zero vectors in place of their embeddings: neither a tokenizer nor the model's config names "
    "a mask or padding token of its vocabulary; pass IntegratedGradients(baselines=id) for another baseline"
)


def token_baselines(source: Any, model: Any, inputs: Inputs) -> dict[int, Tensor]:
    """Return the ids of all texts with words replaced by the token that the source names as neutral; empty if it names none.

    Ids that are no text, such as masks and token types, are their own baseline.

    Args:
        source: A tokenizer, or the config of a model.
        model: The model, whose largest embedding tells whether the token is in its vocabulary.
        inputs: The inputs.
    """
    texts, modules = _texts(inputs), called_modules(model)
    found = {i: neutral_ids(source, inputs.ids[i]) for i in texts}
    tables = [len(layer.weight) for module in modules for layer in module.modules() if isinstance(layer, nn.Embedding)]
    replaced = {i: ids for i, ids in found.items() if ids is not None and int(ids.max()) < max(tables, default=2**62)}
    return {**inputs.ids, **replaced} if replaced and len(replaced) == len(texts) else {}


def config_baselines(model: Any, inputs: Inputs) -> dict[int, Tensor]:
    """Return the `token_baselines` of the config of the model, or of a model within it; empty if several configs differ."""
    parts = [model, *(part for module in called_modules(model) for part in module.modules())]
    configs = {id(part.config): part.config for part in parts if getattr(part, "config", None) is not None}
    found = [baselines for config in configs.values() if (baselines := token_baselines(config, model, inputs))]
    alike = all(torch.equal(one[i], found[0][i]) for one in found for i in one)
    return found[0] if found and alike else {}


def neutral_ids(source: Any, ids: Tensor) -> Tensor | None:
    """Return the ids with every word replaced by the mask token, or else the padding token; None if the source names neither.

    >>> neutral_ids(tokenizer, torch.tensor([[101, 4937, 102, 0]]))
    tensor([[101, 103, 102, 0]])

    Padding, and tokens that begin, end or separate texts, are left; a padding token that is one of these is not neutral.

    Args:
        source: A tokenizer, or the config of a model.
        ids: Token ids, `[N, T]`.
    """
    ends = {id for name in STRUCTURAL for id in _ids(getattr(source, name, None))}
    ends |= set(_ids(getattr(source, "all_special_ids", None))) - {
        id for name in WORDS for id in _ids(getattr(source, name, None))
    }
    named = [id for name in NEUTRAL for id in _ids(getattr(source, name, None))]
    neutral = next((id for id in named if id >= 0 and id not in ends), None)
    if neutral is None:
        return None
    left = ends | set(_ids(getattr(source, "pad_token_id", None)))
    return torch.where(torch.isin(ids, ids.new_tensor(sorted(left))), ids, neutral)


def _ids(value: Any) -> list[int]:
    """Return a token id, or a list of them as Llama 3 has, as a list."""
    return [id for id in (value if isinstance(value, list | tuple) else [value]) if isinstance(id, int)]


def _texts(inputs: Inputs) -> list[int]:
    """Return the parts that are texts, by name, or else by values: masks and types are 0 and 1, positions go step by step."""
    if inputs.names is not None:
        return [i for i in inputs.ids if not NOT_TEXT & set(re.split("[^a-z]+", inputs.names[i].lower()))]
    if len(inputs.ids) == 1:
        return list(inputs.ids)
    return [i for i, ids in inputs.ids.items() if not (ids <= 1).all() and not _are_positions(ids)]


def _are_positions(ids: Tensor) -> bool:
    return ids.dim() > 0 and bool((ids.diff(dim=-1).abs() <= 1).all())
