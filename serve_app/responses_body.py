"""The body of `/v1/responses`: text in, text out. What else the API does (tools, stored conversations) is refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from serve_app.bodies import FORMAT, LATER, MOST_TOP, Body, Content, Count, Metadata, Refused, Sampled

STORED = "nothing is stored, so nothing can be taken up again; send the whole conversation as input"


class Item(Body):
    """A message of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    """text, or parts of type input_text or output_text"""
    id: str | None = None
    """no meaning here: an answer's item may be sent back as it came"""
    status: Literal["completed", "incomplete", "in_progress"] | None = None
    """no meaning here"""


class TextFormat(Body):
    """How the text shall look."""

    format: Annotated[Any, Refused(FORMAT, {"type": "text"})] = None
    verbosity: Annotated[Any, Refused("models here have no such setting", "medium")] = None


def _items(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


_PART = {
    "type": "object", "required": ["type", "text"], "additionalProperties": False,
    "properties": {"type": {"enum": ["input_text", "output_text"]}, "text": {"type": "string"}},
}  # fmt: skip
_CONTENT = {"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": _PART}]}
_ITEM = {
    "type": "object", "required": ["role", "content"], "additionalProperties": False,
    "properties": {
        "type": {"enum": ["message"]}, "role": {"enum": ["system", "developer", "user", "assistant"]},
        "content": _CONTENT, "id": {"type": "string"}, "status": {"enum": ["completed", "incomplete", "in_progress"]},
    },
}  # fmt: skip

Input = Annotated[
    list[Item],
    Field(min_length=1),
    BeforeValidator(_items),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": _ITEM}]}),
]
"""A user's text, or messages."""


class ResponsesBody(Sampled):
    """`POST /v1/responses`: the assistant's next message, as OpenAI's newer API words it."""

    input: Input
    """the user's text, or the conversation as messages"""
    instructions: str | None = None
    """a system message put first"""
    max_output_tokens: Count | None = None
    """most output tokens"""
    include: list[Literal["message.output_text.logprobs"]] | None = None
    """log-probability of each token"""
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None
    """and of so many alternatives"""
    text: TextFormat | None = None
    metadata: Metadata | None = None
    """comes back in the answer"""
    truncation: Annotated[Any, Refused("a conversation that is too long is an error", "disabled")] = None
    store: Annotated[Any, Refused("nothing is stored", False)] = None
    service_tier: Annotated[Any, Refused("there is one", "auto", "default")] = None
    background: Annotated[Any, Refused(STORED, False)] = None
    background_options: Annotated[Any, Refused(STORED)] = None
    previous_response_id: Annotated[Any, Refused(STORED)] = None
    conversation: Annotated[Any, Refused(STORED)] = None
    context_management: Annotated[Any, Refused(STORED, [])] = None
    prompt: Annotated[Any, Refused("there are no stored prompts")] = None
    tools: Annotated[Any, Refused(LATER, [])] = None
    tool_choice: Annotated[Any, Refused(LATER, "none", "auto")] = None
    parallel_tool_calls: Annotated[Any, Refused(LATER, True, False)] = None
    max_tool_calls: Annotated[Any, Refused(LATER)] = None
    reasoning: Annotated[Any, Refused("models here have no such setting")] = None
    image: Annotated[Any, Refused("models here write text")] = None
    moderation: Annotated[Any, Refused("there is no moderation")] = None
    access_programs: Annotated[Any, Refused("there are none")] = None
    stream_options: Annotated[Any, Refused("chunks are not padded", {"include_obfuscation": False})] = None
    prompt_cache_options: Annotated[Any, Refused("equal beginnings share the cache by themselves")] = None
    prompt_cache_retention: Annotated[Any, Refused("the cache is in memory", "in_memory")] = None
