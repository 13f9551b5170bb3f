"""Preprocessing of an image and texts for models that take both."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from whence.errors import InputError, first_line


@dataclass(frozen=True)
class VisionLanguageProcessor:
    """The processor of a Hugging Face model that takes images and texts.

    `compares`: whether the model scores several texts against the image (CLIP) rather than continuing one text.
    """

    processor: Any
    compares: bool

    def read(self, picture: str | Path, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return an image and its texts as inputs of the model."""
        from whence.models.image_files import read_image

        if not texts or not all(text.strip() for text in texts):
            raise InputError("the model takes an image and a text; pass --text 'a photo of a cat'")
        if len(texts) > 1 and not self.compares:
            raise InputError(f"the model continues a single text, got {len(texts)}; pass --text once")
        image = read_image(picture).convert("RGB")
        try:
            if self.compares:
                given = self.processor(text=list(texts), images=image, return_tensors="pt", padding=True)
            else:
                given = self.processor(text=[self._prompt(texts[0])], images=[image], return_tensors="pt")
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise InputError(f"the processor failed on this image and text: {first_line(error)}") from error
        return {name: value for name, value in given.items() if isinstance(value, Tensor)}

    def _prompt(self, text: str) -> str:
        """Return the prompt with the image before the text, in the model's chat format if it has one."""
        if getattr(self.processor, "chat_template", None):
            turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
            return self.processor.apply_chat_template([turn], add_generation_prompt=True)
        token = getattr(self.processor, "image_token", None)
        return f"{token}\n{text}" if token and token not in text else text
