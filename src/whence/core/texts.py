"""Texts as inputs: encoded by the tokenizer of a model, with classes and tokens by name as targets."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from whence.core.devices import first_weight
from whence.core.explanation import Explanation
from whence.core.missing_names import suggest
from whence.core.targets import Logit
from whence.core.tokens import token_strings
from whence.core.trees import Tree
from whence.errors import InputError, TargetError, first_line, value_repr

DECODER = "decoder_input_ids"
MESSAGE_KEYS = {"role", "content"}


@dataclass(frozen=True)
class TextModel:
    """A model, and the tokenizer that encodes its texts.

    Args:
        model: The model.
        tokenizer: Its tokenizer; None for a model of other inputs.
        class_names: The names of its classes; empty for a language model.
    """

    model: Any
    tokenizer: Any = None
    class_names: Any = ()

    @classmethod
    def of(cls, model: Any, tokenizer: Any = None, class_names: Any = ()) -> "TextModel":
        """Return the parts of a `transformers.pipeline` or a `whence.LoadedModel`, and other models as they are."""
        if hasattr(model, "preprocess") and hasattr(model, "postprocess") and hasattr(model, "model"):  # a pipeline
            model, tokenizer = model.model, tokenizer or model.tokenizer
        elif hasattr(model, "class_index") and hasattr(model, "preprocessing"):  # a LoadedModel
            text, names = model.text, model.class_names
            model, tokenizer = model.model, tokenizer or getattr(text, "tokenizer", None)
            class_names = class_names if len(class_names) else names
        return cls(model, tokenizer, class_names if len(class_names) else labels_of_classifier(model))

    def read(self, inputs: Any, for_generation: bool = False) -> Tree:
        """Return the inputs, with texts and chat messages encoded; padded on the left for generation."""
        if not _are_texts(inputs) and not _are_messages(inputs):
            return inputs
        if self.tokenizer is None:
            raise InputError(
                "the input is a text; pass the tokenizer of the model: tokenizer=AutoTokenizer.from_pretrained(…), or a "
                "transformers.pipeline as the model"
            )
        texts = [self._chat(inputs)] if _are_messages(inputs) else [inputs] if isinstance(inputs, str) else list(inputs)
        for text in texts:
            if not text.strip():
                raise InputError("the text is empty" if len(texts) == 1 else f"text {texts.index(text)} is empty")
        return self._encoded(texts, for_generation, special=not _are_messages(inputs))

    def target(self, target: Any) -> Any:
        """Return a target with classes and tokens given by name as their indices."""
        if isinstance(target, str):
            return self._index(target)
        if isinstance(target, list | tuple) and any(isinstance(name, str) for name in target):
            return [self._index(name) if isinstance(name, str) else name for name in target]
        if isinstance(target, Logit) and any(isinstance(name, str) for name in (target.index, target.rather_than)):
            return replace(target, index=self.target(target.index), rather_than=self.target(target.rather_than))
        return target

    def targets(self, targets: Any) -> Any:
        """Return a list of targets with names as indices; what is no list is left to the checks."""
        return [self.target(target) for target in targets] if isinstance(targets, list | tuple) else targets

    def named(self, explanation: Explanation) -> Explanation:
        """Return the explanation with token strings, if the model reads texts."""
        if self.tokenizer is None or not _reads_ids(explanation.inputs):
            return explanation
        return explanation.with_tokens(self.tokenizer)

    def _chat(self, messages: Sequence[Mapping[str, Any]]) -> str:
        if not getattr(self.tokenizer, "chat_template", None):
            raise InputError("the tokenizer has no chat template for messages; pass one text")
        try:
            return self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        except Exception as error:  # of jinja, or raised by the template
            raise InputError(f"the chat template failed on the messages: {first_line(error)}") from error

    def _encoded(self, texts: list[str], for_generation: bool, special: bool) -> dict[str, Tensor]:
        several: dict[str, Any] = {"padding": True} if len(texts) > 1 else {}
        if several and getattr(self.tokenizer, "pad_token", None) is None:
            raise InputError(
                "the tokenizer has no padding token for texts of several lengths; set tokenizer.pad_token = "
                "tokenizer.eos_token, or explain one text at a time"
            )
        if several and for_generation:
            several["padding_side"] = "left"
        try:
            encoded = dict(self.tokenizer(texts, return_tensors="pt", add_special_tokens=special, **several))
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"the tokenizer failed on the text: {first_line(error)}") from error
        if not encoded["input_ids"].numel():
            raise InputError("the tokenizer returned no tokens for this text")
        self._check_vocabulary(encoded["input_ids"])
        accepted = _parameters(self.model)
        weight = first_weight(self.model)
        found = {
            name: t if weight is None else t.to(weight.device)
            for name, t in encoded.items()
            if isinstance(t, Tensor) and (accepted is None or name in accepted)
        }
        return with_decoder_start(self.model, found) if is_encoder_decoder(self.model) else found

    def _check_vocabulary(self, ids: Tensor) -> None:
        size = getattr(getattr(self.model, "config", None), "vocab_size", None)
        if isinstance(size, int) and int(ids.max()) >= size:
            raise InputError(
                f"the tokenizer returned token {int(ids.max())}, but the model has {size} tokens; pass the "
                "tokenizer of this model"
            )

    def _index(self, name: str) -> int:
        """Return the index of a class, in any case, or the id of a token."""
        pairs = self.class_names.items() if isinstance(self.class_names, Mapping) else enumerate(self.class_names)
        known = {str(one).lower(): int(i) for i, one in pairs}
        if known:
            if name.lower() not in known:
                raise TargetError(f"there is no class {name!r}{suggest(name, list(known))}; pass a name or an index of a class")
            return known[name.lower()]
        if self.tokenizer is None:
            raise TargetError(f"target {value_repr(name)} is a name; pass class_names=, tokenizer=, or the index of the class")
        variants = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (f" {name.strip()}", name)]
        ids = min(variants, key=len)
        if len(ids) != 1:
            written = ", ".join(map(repr, token_strings(self.tokenizer, ids)))
            raise TargetError(f"{name!r} is not a single token but {len(ids)}: {written}; choose one of them")
        return int(ids[0])


def is_encoder_decoder(model: Any) -> bool:
    """Return whether a model of transformers has an encoder and a decoder."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def with_decoder_start(model: Any, inputs: Tree) -> Tree:
    """Return the inputs of an encoder-decoder, with its decoder's start token."""
    parts = dict(inputs) if isinstance(inputs, Mapping) else {"input_ids": inputs}
    if DECODER in parts:
        return parts
    settings = (getattr(model, name, None) for name in ("generation_config", "config"))
    first = next((start for s in settings if (start := getattr(s, "decoder_start_token_id", None)) is not None), None)
    read = next((t for t in parts.values() if isinstance(t, Tensor)), None)
    if first is None or read is None:
        raise InputError("the model's config has no decoder_start_token_id; pass decoder_input_ids too")
    return parts | {DECODER: torch.full((len(read), 1), first, device=read.device)}


def labels_of_classifier(model: object) -> Any:
    """Return the names of the classes of a classifier of transformers by index; empty for other models."""
    labels = getattr(getattr(model, "config", None), "id2label", None)
    return labels if isinstance(labels, Mapping) and "Classification" in type(model).__name__ else ()


def _are_texts(inputs: Any) -> bool:
    return isinstance(inputs, str) or (
        isinstance(inputs, list | tuple) and bool(inputs) and all(isinstance(text, str) for text in inputs)
    )


def _are_messages(inputs: Any) -> bool:
    return isinstance(inputs, list | tuple) and bool(inputs) and all(
        isinstance(m, Mapping) and set(m) >= MESSAGE_KEYS for m in inputs
    )  # fmt: skip


def _parameters(model: Any) -> set[str] | None:
    """Return the names of the inputs that a model takes; None if it takes any."""
    function = model.forward if isinstance(model, torch.nn.Module) else model
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()) and "input_ids" not in parameters:
        return None
    return set(parameters)


def _reads_ids(inputs: Any) -> bool:
    parts = inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, tuple) else [inputs]
    return any(isinstance(t, Tensor) and not t.is_floating_point() for t in parts)
