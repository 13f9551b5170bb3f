"""Texts as inputs: encoded by the tokenizer of a model, with classes and tokens by name as targets."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from whence.core.detection import Detection
from whence.core.devices import to_device_of
from whence.core.estimators import EstimatorFunction, method_for_arrays
from whence.core.explanation import Explanation
from whence.core.inputs import Inputs
from whence.core.region import Region
from whence.core.targets import Logit
from whence.core.tokens import token_strings
from whence.core.trees import Tree, named_leaves
from whence.errors import InputError, TargetError, first_line, suggest, value_repr
from whence.methods.integrated_gradients import IntegratedGradients
from whence.methods.registry import Method, resolve_method

DECODER = "decoder_input_ids"
TASKS_OF_CLASSES = ("Classification", "Segmentation", "Detection")
MESSAGE_KEYS = {"role", "content"}


@dataclass(frozen=True)
class TextModel:
    """A model, and the tokenizer that encodes its texts.

    Args:
        model: The model.
        tokenizer: Its tokenizer; None for a model of other inputs.
        class_names: The names of its classes; empty for a language model.
        processor: Its processor of pictures and texts, for a model that reads both.
        ambiguous_labels: Its labels, where an integer may mean one of them or the index of an output.
    """

    model: Any
    tokenizer: Any = None
    class_names: Any = ()
    processor: Any = None
    ambiguous_labels: Sequence[str] = ()
    strings: dict[tuple[int, ...], list[str]] = field(default_factory=dict)  # of the tokens of the texts that were read last

    @classmethod
    def of(cls, model: Any, tokenizer: Any = None, class_names: Any = ()) -> "TextModel":
        """Return the parts of a `transformers.pipeline`, a `LoadedModel` or an estimator, and other models as they are."""
        is_loaded = hasattr(model, "class_index") and hasattr(model, "preprocessing")
        estimator = EstimatorFunction.of(model.model if is_loaded else model)
        if estimator is not None:
            names = class_names if len(class_names) else estimator.class_names
            return cls(estimator.function, class_names=names, ambiguous_labels=estimator.ambiguous_labels)
        if hasattr(model, "preprocess") and hasattr(model, "postprocess") and hasattr(model, "model"):  # a pipeline
            model, tokenizer = model.model, tokenizer or getattr(model, "processor", None) or model.tokenizer
        elif is_loaded:  # a LoadedModel
            both, text, names = model.vision_language, model.text, model.class_names
            model, tokenizer = model.model, tokenizer or getattr(both, "processor", None) or getattr(text, "tokenizer", None)
            class_names = class_names if len(class_names) else names
        reads_pictures = hasattr(tokenizer, "tokenizer") and hasattr(tokenizer, "image_processor")
        processor, tokenizer = (tokenizer, tokenizer.tokenizer) if reads_pictures else (None, tokenizer)
        return cls(model, tokenizer, class_names if len(class_names) else class_labels(model), processor)

    def read(self, inputs: Any, for_generation: bool = False) -> Tree:
        """Return the inputs, with texts and chat messages encoded; padded on the left for generation."""
        if not _are_texts(inputs) and not are_messages(inputs):
            return inputs
        if are_messages(inputs) and (self._only_processor_has_template or not all(map(_is_text, inputs))):
            return self._read_pictures(inputs)
        if self.tokenizer is None:
            raise InputError(
                "the input is a text; pass the tokenizer of the model: tokenizer=AutoTokenizer.from_pretrained(…), or a "
                "transformers.pipeline as the model; read images by whence.Preprocessing(…).read(path)"
            )
        texts = [self._chat(inputs)] if are_messages(inputs) else [inputs] if isinstance(inputs, str) else list(inputs)
        for text in texts:
            if not text.strip():
                raise InputError("the text is empty" if len(texts) == 1 else f"text {texts.index(text)} is empty")
        return self._encoded(texts, for_generation, special=not are_messages(inputs))

    @property
    def _only_processor_has_template(self) -> bool:
        has_template = (bool(getattr(one, "chat_template", None)) for one in (self.processor, self.tokenizer))
        return list(has_template) == [True, False]

    def _read_pictures(self, messages: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return chat messages with pictures as the inputs of a model that reads both."""
        if self.processor is None:
            raise InputError(
                "the messages have parts that are no texts; pass the processor of the model: "
                "tokenizer=AutoProcessor.from_pretrained(…), or a pipeline of the task 'image-text-to-text' as the model"
            )
        if not getattr(self.processor, "chat_template", None):
            raise InputError("the processor has no chat template for messages; pass the inputs that it returns")
        options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
        try:
            encoded = self.processor.apply_chat_template(list(messages), **options)
        except Exception as error:  # of jinja, of a picture that cannot be read
            raise InputError(f"the processor failed on the messages: {first_line(error)}") from error
        return self._accepted(encoded)

    def target(self, target: Any) -> Any:
        """Return a target with classes and tokens given by name as their indices."""
        if isinstance(target, str):
            return self._index(target)
        parts = (target.index, target.rather_than) if isinstance(target, Logit) else (target,)
        if self.ambiguous_labels and any(map(_has_integers, parts)):
            raise TargetError(
                f"the labels of the model are {', '.join(self.ambiguous_labels)}, and its outputs "
                f"{', '.join(self.class_names)}, so that an integer may be a label or an index; pass names of outputs as "
                f"texts: target={self.class_names[0]!r}, or [str(label) for label in labels]"
            )
        if isinstance(target, list | tuple):
            return self._of_list(target)
        if isinstance(target, Logit) and any(isinstance(name, str) for name in (target.index, target.rather_than)):
            return replace(target, index=self.target(target.index), rather_than=self.target(target.rather_than))
        if isinstance(target, Region):
            return replace(target, index=self.target(target.index))
        if isinstance(target, Detection):
            return replace(target, label=self.target(target.label))
        if isinstance(target, Logit):
            return replace(target, index=self._of_list(target.index), rather_than=self._of_list(target.rather_than))
        return target

    def _of_list(self, target: Any) -> Any:
        if not isinstance(target, list | tuple) or not any(isinstance(name, str) for name in target):
            return target
        return [self._index(name) if isinstance(name, str) else name for name in target]

    def targets(self, targets: Any) -> Any:
        """Return a list of targets with names as indices; what is no list is left to the checks."""
        return [self.target(target) for target in targets] if isinstance(targets, list | tuple) else targets

    def method(self, method: Method | str | None, inputs: Inputs) -> Method:
        """Return the method, by default LRP, or Shapley values where the model is a function of arrays.

        Integrated gradients without a baseline get the tokenizer, for its mask or padding token.
        """
        if method is None and inputs.arrays and not isinstance(self.model, torch.nn.Module):
            return method_for_arrays(inputs)
        method = resolve_method(method)
        if not isinstance(method, IntegratedGradients) or method.baselines is not None or self.tokenizer is None:
            return method
        return method if method.tokenizer is not None else replace(method, tokenizer=self.tokenizer)

    def named(self, explanation: Explanation) -> Explanation:
        """Return the explanation with token strings, if the model reads texts."""
        if self.tokenizer is None or not _reads_ids(explanation.inputs):
            return explanation
        found = explanation.with_tokens(self.tokenizer)
        ids = named_leaves(explanation.inputs)
        as_read = {
            name: [self.strings.get(tuple(row), words) for row, words in zip(ids[name].tolist(), rows, strict=True)]
            for name, rows in found.tokens.items()
            if ids[name].dim() == 2
        }
        return replace(found, tokens=found.tokens | as_read)

    def _chat(self, messages: Sequence[Mapping[str, Any]]) -> str:
        if not getattr(self.tokenizer, "chat_template", None):
            raise InputError("the tokenizer has no chat template for messages; pass one text")
        return render_chat(self.tokenizer, messages)

    def _encoded(self, texts: list[str], for_generation: bool, special: bool) -> dict[str, Tensor]:
        several: dict[str, Any] = {"padding": True} if len(texts) > 1 else {}
        if several and getattr(self.tokenizer, "pad_token", None) is None:
            raise InputError(
                "the tokenizer has no padding token for texts of several lengths; set tokenizer.pad_token = "
                "tokenizer.eos_token, or explain one text at a time"
            )
        if several and for_generation:
            several["padding_side"] = "left"
        if getattr(self.tokenizer, "is_fast", False):
            several["return_offsets_mapping"] = True
        try:
            encoded = dict(self.tokenizer(texts, return_tensors="pt", add_special_tokens=special, **several))
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"the tokenizer failed on the text: {first_line(error)}") from error
        if not encoded["input_ids"].numel():
            raise InputError("the tokenizer returned no tokens for this text")
        self._check_vocabulary(encoded["input_ids"])
        self._remember_strings(texts, encoded.pop("offset_mapping", None), encoded["input_ids"])
        accepted = _parameters(self.model)
        mask = encoded.get("attention_mask")
        if accepted is not None and "attention_mask" not in accepted and mask is not None and not mask.bool().all():
            raise InputError(
                "the texts have several lengths, but the model takes no attention_mask and would read the padding as text; "
                "explain one text at a time"
            )
        found = self._accepted(encoded)
        return with_decoder_start(self.model, found) if is_encoder_decoder(self.model) else found

    def _remember_strings(self, texts: Sequence[str], offsets: Tensor | None, ids: Tensor) -> None:
        """Keep the part of the text that each token stands for, which decoding may change ("don't" to "don ' t")."""
        self.strings.clear()
        if offsets is None:
            return
        for text, places, row in zip(texts, offsets.tolist(), ids.tolist(), strict=True):
            pieces, found, done = token_strings(self.tokenizer, row), [], 0
            for i, (start, stop) in enumerate(places):
                if start == stop:  # a special token
                    found.append(pieces[i])
                elif i + 1 < len(places) and places[i + 1] == [start, stop]:  # the character has more tokens
                    found.append("")
                else:
                    found.append(text[done:stop])
                    done = stop
            self.strings[tuple(row)] = found

    def _accepted(self, encoded: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the tensors that the model takes, on its device."""
        accepted = _parameters(self.model)
        given = {name: t for name, t in encoded.items() if isinstance(t, Tensor) and (accepted is None or name in accepted)}
        return {name: to_device_of(t, self.model) for name, t in given.items()}

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
        known = [(i, str(one)) for i, one in pairs]
        if known:
            exact = [i for i, one in known if one == name] or [i for i, one in known if one.lower() == name.lower()]
            if len(exact) > 1:
                raise TargetError(
                    f"{len(exact)} classes are named {name!r}, {', '.join(map(str, exact))}; pass the index of one"
                )
            if not exact:
                hint = suggest(name, [one for _, one in known])
                raise TargetError(f"there is no class {name!r}{hint}; pass a name or an index of a class")
            return _class_number(exact[0])
        if self.tokenizer is None:
            raise TargetError(f"target {value_repr(name)} is a name; pass class_names=, tokenizer=, or the index of the class")
        return self._token(name)

    def _token(self, name: str) -> int:
        """Return the id of a text that is a single token: of a word, the one with a space in front, where there is one."""
        texts = [f" {name}", name] if name.isalnum() else [name, name.lstrip()]  # some tokenizers add the space themselves
        variants = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        unknown = getattr(self.tokenizer, "unk_token_id", None)
        single = [ids[0] for ids in variants if len(ids) == 1 and (ids[0] != unknown or name == self.tokenizer.unk_token)]
        if single:
            return int(single[0])
        ids = min(variants, key=len)
        if unknown in ids:
            raise TargetError(f"{name!r} is not in the vocabulary of the tokenizer; pass another word or a token id")
        written = ", ".join(map(repr, token_strings(self.tokenizer, ids)))
        raise TargetError(
            f"{name!r} is not a single token but {len(ids)}: {written}; choose one of them, or explain a passage of a text by "
            "whence.Span(start, stop), or by sources(…, response=…)"
        )


def _has_integers(target: Any) -> bool:
    """Return whether a target is an integer, or has one for each sample."""
    if isinstance(target, int | Tensor) or hasattr(target, "__array__"):
        return True
    return isinstance(target, list | tuple) and not any(isinstance(one, str) for one in target)


def _class_number(index: Any) -> int:
    try:
        return int(index)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"class_names has the key {value_repr(index)}; expected a list of names, or a dict {{index: name}}"
        ) from error


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


def class_labels(model: object) -> Any:
    """Return the names of the classes of a model of transformers that tells classes, by index; empty for other models."""
    labels, kind = getattr(getattr(model, "config", None), "id2label", None), type(model).__name__
    return labels if isinstance(labels, Mapping) and any(task in kind for task in TASKS_OF_CLASSES) else ()


def _are_texts(inputs: Any) -> bool:
    return isinstance(inputs, str) or (
        isinstance(inputs, list | tuple) and bool(inputs) and all(isinstance(text, str) for text in inputs)
    )


def are_messages(inputs: Any) -> bool:
    """Return whether inputs are chat messages: dicts with the keys "role" and "content"."""
    return isinstance(inputs, list | tuple) and bool(inputs) and all(
        isinstance(m, Mapping) and set(m) >= MESSAGE_KEYS for m in inputs
    )  # fmt: skip


def _is_text(message: Mapping[str, Any]) -> bool:
    """Return whether a chat message is a text alone, without parts of another type, such as images."""
    content = message["content"]
    return isinstance(content, str) or all(isinstance(part, Mapping) and part.get("type") == "text" for part in content)


def render_chat(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of chat messages in the template of the tokenizer, up to where the response begins."""
    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    except Exception as error:  # of jinja, or raised by the template
        raise InputError(f"the chat template failed on the messages: {first_line(error)}") from error


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
