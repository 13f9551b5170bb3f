"""Schemas of the page's requests, validated before anything is computed."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_TEXT = 4000  # letters
MAX_CSV = 500_000
MAX_DOCUMENTS = 20
MAX_NEW_TOKENS = 64
ClassReference = int | Annotated[str, Field(max_length=200)] | None
LongName = Annotated[str, Field(max_length=400)]
Csv = Annotated[str, Field(max_length=MAX_CSV)]
ShortName = Annotated[str, Field(max_length=40)]
Base64Bytes = Annotated[str, Field(max_length=12 * 2**20)]  # in base64


class RuleSettings(BaseModel):
    """Settings of LRP rules that the user sets by hand."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    rule: Literal["default", "gamma", "alpha_beta", "epsilon", "z_plus"] = "default"
    gamma: float = Field(default=0.25, ge=0, le=100)
    alpha: float = Field(default=2.0, ge=1, le=20)
    epsilon: float = Field(default=1e-6, ge=0, le=100)
    part: Literal["both", "relevance", "counter-relevance"] = "both"


class ModelRequest(BaseModel):
    """Request to one of the models."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: LongName


class ExplainRequest(ModelRequest):
    """Request for an explanation of a drawing, an image, a text, a row of a table or a time series."""

    drawing: Annotated[str, Field(max_length=4096)] | None = None  # 28 × 28 bytes in base64
    picture: Base64Bytes | None = None  # a file
    text: Annotated[str, Field(max_length=MAX_TEXT)] | None = None
    table: Csv | None = None
    row: Annotated[int, Field(ge=0, le=100_000)] = 0  # of the table
    series: Csv | None = None
    target: ClassReference = None
    rather_than: ClassReference = None
    point: tuple[float, float] | None = None  # of a segmentation: a pixel (x, y) of the picture as the model takes it
    box: tuple[float, float, float, float] | None = None  # of a segmentation: left, top, right, bottom in these pixels
    position: Annotated[int, Field(ge=-MAX_TEXT, le=MAX_TEXT)] = -1
    method: ShortName | None = None  # the default of the kind of model
    settings: RuleSettings = RuleSettings()


class DownloadRequest(ExplainRequest):
    """Request for an explanation as a file."""

    format: Literal["png", "npz", "html"]


class CodeRequest(ExplainRequest):
    """Request for the Python code and the command that compute an explanation."""

    file: LongName | None = None  # name of the file of the input on the user's machine
    sample: Annotated[int, Field(ge=0)] | None = None  # index of the bundled example


class Message(BaseModel):
    """A chat message."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, Field(max_length=MAX_TEXT)]


class GenerationRequest(ModelRequest):
    """Request for a generated text, with an explanation of each new token."""

    text: Annotated[str, Field(max_length=MAX_TEXT)] | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=20)] | None = None
    max_new_tokens: Annotated[int, Field(ge=1, le=MAX_NEW_TOKENS)] = 20
    contrast: bool = False


class Document(BaseModel):
    """A document that the model reads before it answers."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=80)]
    text: Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]


class SourcesRequest(ModelRequest):
    """Request for the documents that made the model write its response."""

    documents: Annotated[list[Document], Field(min_length=1, max_length=MAX_DOCUMENTS)]
    question: Annotated[str, Field(max_length=MAX_TEXT)] = ""
    response: Annotated[str, Field(max_length=MAX_TEXT)] | None = None
    max_new_tokens: Annotated[int, Field(ge=1, le=MAX_NEW_TOKENS)] = 32


class ChannelRequest(ExplainRequest):
    """Request for the relevance that flows through a layer, or through one of its channels."""

    layer: LongName
    channel: Annotated[int, Field(ge=0)] | None = None


class AttackRequest(ExplainRequest):
    """Request for an adversarial example within ε of every pixel."""

    epsilon: Annotated[float, Field(gt=0, le=1)]  # for pixels in [0, 1]
    attack: Literal["fgsm", "pgd"] = "pgd"


class PrototypeRequest(ModelRequest):
    """Request for prototypes of classes."""

    classes: Annotated[list[int | Annotated[str, Field(max_length=200)]], Field(min_length=1, max_length=10)]
    prior: Literal["none", "l2", "expert", "decoder"] = "none"
    n_steps: Annotated[int, Field(ge=1, le=512)] = 128
    seed: Annotated[int, Field(ge=0, le=2**31)] = 0


class EvaluationRequest(ModelRequest):
    """Request for an evaluation of methods."""

    methods: Annotated[list[ShortName], Field(min_length=1, max_length=10)]
    metrics: Annotated[list[ShortName], Field(min_length=1, max_length=10)]
    count: Annotated[int, Field(ge=2, le=50)] = 20  # of samples


class AuditRequest(BaseModel):
    """Request for an audit of a store."""

    model_config = ConfigDict(extra="forbid")

    store: LongName
    model: LongName | None = None  # to test the clusters on, with its data
    layer: LongName | None = None
    group_by: Literal["prediction", "label", "target"] = "prediction"


class StepRequest(BaseModel):
    """Request for the relevance on every edge of a tiny network."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    way: ShortName
    inputs: Annotated[list[Annotated[float, Field(ge=0, le=100)]], Field(min_length=2, max_length=2)]
    settings: RuleSettings = RuleSettings()
