"""From a photo and texts to the input of a model that reads both."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from whence.errors import InputError, first_line


@dataclass(frozen=True)
class VisionLanguageProcessor:
    """The processor of a model of Hugging Face's library.

    `compares`: the model scores each of several texts for the picture (CLIP); else it goes on writing one text.
    """

    processor: Any
    compares: bool

    def read(self, picture: str | Path, texts: Sequence[str]) -> dict[str, Tensor]:
        """One picture and its texts as the model takes them."""
        from whence.models.image_files import read_image

        if not texts or not all(text.strip() for text in texts):
            raise InputError("the model reads a picture and a text; pass --text 'a photo of a cat'")
        if len(texts) > 1 and not self.compares:
            raise InputError(f"the model continues one text, got {len(texts)}; pass one --text")
        image = read_image(picture).convert("RGB")
        try:
            if self.compares:
                given = self.processor(text=list(texts), images=image, return_tensors="pt", padding=True)
            else:
                given = self.processor(text=[self._prompt(texts[0])], images=[image], return_tensors="pt")
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise InputError(f"the processor cannot read this picture and text: {first_line(error)}") from error
        return {name: value for name, value in given.items() if isinstance(value, Tensor)}

    def _prompt(self, text: str) -> str:
        """The text behind its picture, as the model was taught to read them."""
        if getattr(self.processor, "chat_template", None):
            turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
            return self.processor.apply_chat_template([turn], add_generation_prompt=True)
        token = getattr(self.processor, "image_token", None)
        return f"{token}\n{text}" if token and token not in text else text
