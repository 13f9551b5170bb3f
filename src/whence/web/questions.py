"""What the page asks, checked before anything is computed."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MOST_TEXT = 4000  # letters
Index = int | Annotated[str, Field(max_length=200)] | None
Bytes = Annotated[str, Field(max_length=12 * 2**20)]  # in base64


class Settings(BaseModel):
    """Of LRP, where its rules are set by hand."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    rule: Literal["default", "gamma", "alpha_beta", "epsilon", "z_plus"] = "default"
    gamma: float = Field(default=0.25, ge=0, le=100)
    alpha: float = Field(default=2.0, ge=1, le=20)
    epsilon: float = Field(default=1e-6, ge=0, le=100)
    part: Literal["both", "relevance", "counter-relevance"] = "both"


class Question(BaseModel):
    """Why this output? Of one model, for a drawing, a picture or a text."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: Annotated[str, Field(max_length=400)]
    drawing: Annotated[str, Field(max_length=4096)] | None = None  # 28 × 28 bytes in base64
    picture: Bytes | None = None  # a file
    text: Annotated[str, Field(max_length=MOST_TEXT)] | None = None
    target: Index = None
    rather_than: Index = None
    position: Annotated[int, Field(ge=-MOST_TEXT, le=MOST_TEXT)] = -1
    method: Annotated[str, Field(max_length=40)] = "lrp"
    settings: Settings = Settings()


class FileQuestion(Question):
    """The explanation as a file."""

    format: Literal["png", "npz", "html"]


class PartQuestion(Question):
    """What flows through a layer, or through one channel of it."""

    layer: Annotated[str, Field(max_length=400)]
    channel: Annotated[int, Field(ge=0)] | None = None
