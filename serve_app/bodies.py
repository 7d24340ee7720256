"""The bodies of `/v1/completions`, `/v1/chat/completions` and `/v1/embeddings`: strict, and the OpenAPI document.

Every field that OpenAI documents is here. A field works, or it says that it does not (`Refused`, with the values that
ask for nothing), or it is in IDLE: it cannot change a text, and the docs list it. Unknown fields are refused. null is
"not given" everywhere, since clients send it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError, core_schema

from raydecode.complaints import kind
from serve_app.failures import UNSUPPORTED

MOST_TOP = 20
"""Most alternatives per token, as at OpenAI."""

IDLE = ("user", "safety_identifier", "prompt_cache_key", "metadata")
"""Fields that name the caller or the request and cannot change a text. `metadata` comes back in the answer."""


class Body(BaseModel):
    """A JSON object."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, use_attribute_docstrings=True)


class Refused:
    """Marks a field that is not supported: null and what asks for nothing pass, all else is a 400 saying why."""

    def __init__(self, why: str, *harmless: Any) -> None:
        self.why, self.harmless = f"not supported: {why}", harmless

    def check(self, value: Any) -> Any:
        if value is not None and not any(type(value) is type(one) and value == one for one in self.harmless):
            raise PydanticCustomError(UNSUPPORTED, "{why}", {"why": self.why})
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> dict:
        return {"enum": [None, *self.harmless], "description": f"N{self.why[1:]}."}


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("value", "{said}", {"said": message})


def _strings(value: Any) -> Any:
    if value is None:
        return None
    held = [value] if isinstance(value, str) else value
    if not isinstance(held, list) or not all(isinstance(one, str) for one in held):
        raise _wrong("needs text or a list of texts")
    if "" in held:
        raise _wrong("an empty stop string would end every text at once")
    return tuple(held)


def _content(value: Any) -> Any:
    """Text, or the texts of its parts, a line each."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise _wrong("needs text or a list of text parts")
    for i, part in enumerate(value):
        if not isinstance(part, dict) or "type" not in part:
            raise _wrong(f"part {i} needs a `type`: {{type: text, text: ...}}")
        if part["type"] not in ("text", "input_text", "output_text"):
            raise PydanticCustomError(
                UNSUPPORTED,
                "{why}",
                {"why": f"not supported: parts of type {str(part['type'])[:40]!r}; models here read text"},
            )
        extra = sorted(set(part) - {"type", "text", "annotations", "logprobs"})
        if not isinstance(part.get("text"), str) or extra:
            raise _wrong(f"part {i} is {{type: text, text: ...}}" + (f" without {extra[0][:40]!r}" if extra else ""))
    return "\n".join(part["text"] for part in value)


def _prompts(value: Any) -> Any:
    """One prompt or several, each as text or ids: a tuple of str and of tuples of int."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value:
        raise _wrong(f"needs text, ids, or a list of either, and not an empty one; got {kind(value)}")
    if all(isinstance(one, str) for one in value):
        return tuple(value)
    if all(_is_id(one) for one in value):
        return (tuple(value),)
    if all(isinstance(one, list) and one and all(map(_is_id, one)) for one in value):
        return tuple(tuple(one) for one in value)
    raise _wrong("needs text, ids (whole numbers from 0), or a list of either; one kind per body, none empty")


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


def _bias(value: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _wrong(f"needs a mapping from token id to a number, got {kind(value)}")
    for key, nats in value.items():
        if not (isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10):
            raise _wrong(f"keys are token ids, got {str(key)[:40]!r}")
        if isinstance(nats, bool) or not isinstance(nats, int | float) or not -100 <= nats <= 100:
            raise _wrong(f"token {key}: a number from -100 to 100, got {str(nats)[:40]}")
    return {int(key): float(nats) for key, nats in value.items()}


_TEXT = {"type": "string"}
_ID = {"type": "integer", "minimum": 0, "maximum": (1 << 31) - 1}
_PARTS = {
    "type": "array", "minItems": 1,
    "items": {
        "type": "object", "required": ["type", "text"], "additionalProperties": False,
        "properties": {"type": {"enum": ["text"]}, "text": _TEXT},
    },
}  # fmt: skip

Content = Annotated[str, BeforeValidator(_content), WithJsonSchema({"anyOf": [_TEXT, _PARTS]})]
"""Text, or text parts, which become lines."""

Stop = Annotated[
    tuple[str, ...] | None,
    BeforeValidator(_strings),
    WithJsonSchema({
        "anyOf": [
            {"type": "string", "minLength": 1}, {"type": "array", "items": {"type": "string", "minLength": 1}},
            {"type": "null"},
        ],
    }),
]  # fmt: skip

Prompts = Annotated[
    tuple[str | tuple[int, ...], ...],
    BeforeValidator(_prompts),
    WithJsonSchema({
        "anyOf": [
            _TEXT,
            {"type": "array", "items": _TEXT, "minItems": 1},
            {"type": "array", "items": _ID, "minItems": 1},
            {"type": "array", "items": {"type": "array", "items": _ID, "minItems": 1}, "minItems": 1},
        ],
    }),
]  # fmt: skip

Bias = Annotated[
    dict[int, float] | None,
    BeforeValidator(_bias),
    WithJsonSchema({
        "anyOf": [
            {
                "type": "object", "propertyNames": {"pattern": "^[0-9]{1,9}$"},
                "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
            },
            {"type": "null"},
        ],
    }),
]  # fmt: skip

Seed = Annotated[int, Field(ge=0, lt=1 << 64)]
Count = Annotated[int, Field(ge=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Name = Annotated[str, Field(max_length=512)]
Metadata = Annotated[dict[str, str], Field(max_length=16)]

LATER = "tools come with structured output"
FORMAT = "structured output is not here yet; a text is free or stopped by `stop`"


class StreamOptions(Body):
    """What a stream carries besides the text."""

    include_usage: bool | None = None
    """a last chunk with the token counts"""
    include_obfuscation: Annotated[Any, Refused("chunks are not padded", False)] = None


class Sampled(Body):
    """What all ways to ask for a text share."""

    model: Name
    """a name of `/v1/models`"""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """0 is greedy; wider through `decoding`"""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """mass of the nucleus; without meaning at temperature 0"""
    stream: bool | None = None
    """server-sent events, a piece of text each"""
    user: Name | None = None
    """no meaning here"""
    safety_identifier: Name | None = None
    """no meaning here"""
    prompt_cache_key: Name | None = None
    """no meaning here: equal beginnings share the cache by themselves"""
    decoding: dict[str, Any] | None = None
    """the section `decoding` of a job, over all other fields: sampler, drafter, monitors, interventions, ..."""
    noise_id: Annotated[str, Field(max_length=512)] | None = None
    """with `seed` the only source of randomness; a job's row id. Empty if not given"""
    trace: bool | None = None
    """stream: tokens, alternatives, drafts and trees in each chunk's `raydecode`"""


class Choices(Sampled):
    """What completions and chat completions share."""

    presence_penalty: Penalty | None = None
    """subtracted once from the logit of a token that the output has"""
    frequency_penalty: Penalty | None = None
    """subtracted for each time that the output has a token"""
    logit_bias: Bias = None
    """token id: a number added to its logit"""
    seed: Seed | None = None
    """equal seeds give equal texts; without one the server draws it and says it (`raydecode.seed`)"""
    n: Count | None = None
    """texts per prompt"""
    stop: Stop = None
    """the text ends before the first of these"""
    stream_options: StreamOptions | None = None
    """only with `stream`"""
    metadata: Metadata | None = None
    """comes back in the answer"""
    store: Annotated[Any, Refused("nothing is stored", False)] = None
    service_tier: Annotated[Any, Refused("there is one", "auto", "default")] = None


class CompletionBody(Choices):
    """`POST /v1/completions`: the text that follows a prompt."""

    prompt: Prompts
    """text or ids, or a list of them, each a choice of its own"""
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    """most output tokens; 0 only with `echo`"""
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None
    """log-probability of each token and of so many alternatives"""
    echo: bool | None = None
    """the prompt before the text; with `logprobs` its log-probabilities, too"""
    best_of: Count | None = None
    """so many texts, of which the `n` likeliest per token come back; not in a stream"""
    suffix: Annotated[Any, Refused("models here continue a text and do not fill one in", "")] = None


class Message(Body):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    """developer is system"""
    content: Content
    """text, or parts of type text"""
    name: Annotated[str, Field(max_length=512)] | None = None
    """handed to the model's chat template"""
    refusal: Annotated[Any, Refused("it is no text of the chat")] = None
    audio: Annotated[Any, Refused("models here read text")] = None
    tool_calls: Annotated[Any, Refused(LATER, [])] = None
    tool_call_id: Annotated[Any, Refused(LATER)] = None
    function_call: Annotated[Any, Refused(LATER)] = None


class ChatBody(Choices):
    """`POST /v1/chat/completions`: the assistant's next message."""

    messages: Annotated[list[Message], Field(min_length=1)]
    """the chat so far, through the model's own template"""
    max_tokens: Count | None = None
    """most output tokens"""
    max_completion_tokens: Count | None = None
    """the newer name of `max_tokens`"""
    logprobs: bool | None = None
    """log-probability of each token"""
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None
    """and of so many alternatives; needs `logprobs`"""
    tools: Annotated[Any, Refused(LATER, [])] = None
    tool_choice: Annotated[Any, Refused(LATER, "none")] = None
    parallel_tool_calls: Annotated[Any, Refused(LATER)] = None
    functions: Annotated[Any, Refused(LATER, [])] = None
    function_call: Annotated[Any, Refused(LATER, "none")] = None
    response_format: Annotated[Any, Refused(FORMAT, {"type": "text"})] = None
    modalities: Annotated[Any, Refused("models here write text", ["text"])] = None
    audio: Annotated[Any, Refused("models here write text")] = None
    prediction: Annotated[Any, Refused("say decoding: {drafter: ...}: drafts come from drafters")] = None
    reasoning_effort: Annotated[Any, Refused("models here have no such setting", "none")] = None
    verbosity: Annotated[Any, Refused("models here have no such setting", "medium")] = None
    web_search_options: Annotated[Any, Refused("there is no search")] = None
    moderation: Annotated[Any, Refused("there is no moderation")] = None
    prompt_cache_options: Annotated[Any, Refused("equal beginnings share the cache by themselves")] = None
    prompt_cache_retention: Annotated[Any, Refused("the cache is in memory", "in_memory")] = None


class EmbeddingBody(Body):
    """`POST /v1/embeddings`: a vector per text."""

    model: Name
    """a name of `/v1/models`"""
    input: Prompts
    """text or ids, or a list of them"""
    dimensions: Count | None = None
    """the first so many numbers, normalised anew"""
    encoding_format: Literal["float", "base64"] | None = None
    """base64: little-endian float32"""
    user: Name | None = None
    """no meaning here"""
