"""From a body to requests. Pure: the id, the seed and the time are arguments.

A field of OpenAI's lies over the served model's own `decoding`, the extension field `decoding` over both; what the
body says twice in two ways is refused, both places named.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raydecode import registry
from raydecode.config import ServedModelConfig, parse_decoding
from raydecode.errors import UserError
from raydecode.request import DecodingSpec, Ids, Messages, Prompt, Request, Text
from serve_app.bodies import ChatBody, Choices, CompletionBody, Sampled
from serve_app.responses_body import ResponsesBody
from serve_app.sampling import IDENTITY, chain

TRACED = 5
"""Alternatives per token that a trace shows, unless the body asks for others."""


@dataclass(frozen=True, slots=True)
class Call:
    """A body as requests, and what its answer shall hold.

    requests: one per prompt; their noise differs where several were asked at once
    n:        texts per prompt that come back; `requests[0].decoding.n` are made (best_of)
    top:      alternatives per token to show; None: no log-probabilities
    score:    the prompts' log-probabilities are wanted, too (echo)
    field:    of the body, that holds the prompt
    """

    model: str
    requests: tuple[Request, ...]
    n: int
    field: str
    top: int | None = None
    stream: bool = False
    usage: bool = False
    trace: bool = False
    echo: bool = False
    score: bool = False
    write: bool = True
    metadata: Mapping[str, str] | None = None

    @property
    def spec(self) -> DecodingSpec:
        return self.requests[0].decoding

    @property
    def noise_id(self) -> str:
        return self.requests[0].noise_id


def chat(body: ChatBody, model: ServedModelConfig, id: str, seed: int, context: int) -> Call:
    """`/v1/chat/completions`."""
    most = _same("max_completion_tokens", body.max_completion_tokens, "max_tokens", body.max_tokens)
    if body.top_logprobs is not None and not body.logprobs:
        raise UserError("only with logprobs: true", field="top_logprobs", value=body.top_logprobs)
    top = (body.top_logprobs or 0) if body.logprobs else None
    spec, overflow = _spec(body, model, {"max_tokens": most, "logprobs": top, **_choices(body)}, seed, context)
    turns = tuple(_turn(one.role, one.content, one.name) for one in body.messages)
    return Call(
        body.model, _requests(body, id, [Messages(turns)], spec, overflow), spec.n, "messages", top=_shown(top, body),
        stream=bool(body.stream), usage=_usage(body), trace=_trace(body), metadata=body.metadata,
    )  # fmt: skip


def completion(body: CompletionBody, model: ServedModelConfig, id: str, seed: int, context: int) -> Call:
    """`/v1/completions`."""
    write = body.max_tokens != 0
    if not write and (not body.echo or body.stream):
        raise UserError("0 asks for no text; only with echo: true and no stream", field="max_tokens", value=0)
    given = {"max_tokens": body.max_tokens if write else 1, "logprobs": body.logprobs, **_choices(body)}
    spec, overflow = _spec(body, model, given, seed, context)
    n, best_of = spec.n, body.best_of
    if best_of is not None:
        if best_of < n:
            raise UserError(f"is below n = {n}", field="best_of", value=best_of)
        if best_of > n and body.stream:
            raise UserError("the best are known at the end only: no stream", field="best_of", value=best_of)
        if best_of > n:
            spec = dataclasses.replace(spec, n=best_of, logprobs=spec.logprobs or 0)
    prompts = [Text(one) if isinstance(one, str) else Ids(one) for one in body.prompt]
    return Call(
        body.model, _requests(body, id, prompts, spec, overflow), n, "prompt", top=_shown(body.logprobs, body),
        stream=bool(body.stream), usage=_usage(body), trace=_trace(body), echo=bool(body.echo),
        score=bool(body.echo) and body.logprobs is not None, write=write, metadata=body.metadata,
    )  # fmt: skip


def responses(body: ResponsesBody, model: ServedModelConfig, id: str, seed: int, context: int) -> Call:
    """`/v1/responses`."""
    asked = "message.output_text.logprobs" in (body.include or ())
    if body.top_logprobs and not asked:
        raise UserError(
            "only with include: [message.output_text.logprobs]", field="top_logprobs", value=body.top_logprobs
        )
    top = (body.top_logprobs or 0) if asked else None
    spec, overflow = _spec(body, model, {"max_tokens": body.max_output_tokens, "logprobs": top}, seed, context)
    if spec.n != 1:
        raise UserError("a response is one text", field="decoding.n", value=spec.n, nearest="1")
    turns = [] if body.instructions is None else [_turn("system", body.instructions)]
    turns += [_turn(one.role, one.content) for one in body.input]
    return Call(
        body.model, _requests(body, id, [Messages(tuple(turns))], spec, overflow), 1, "input", top=_shown(top, body),
        stream=bool(body.stream), trace=_trace(body), metadata=body.metadata,
    )  # fmt: skip


def _choices(body: Choices) -> dict[str, Any]:
    if body.stream_options is not None and not body.stream:
        raise UserError("only with stream: true", field="stream_options", value=body.stream_options.model_dump())
    stop = None if body.stop is None else tuple(text.encode() for text in body.stop)
    return {"n": body.n, "seed": body.seed, "stop": stop}


def _spec(
    body: Sampled, model: ServedModelConfig, fields: Mapping[str, Any], seed: int, context: int
) -> tuple[DecodingSpec, str]:
    """The specification, and what to do with a text that is too long for the context.

    fields:  keys of a specification as OpenAI's fields say them, None where they do not
    context: the model's, in tokens; 0 while unknown
    """
    sampling = {name: getattr(body, name, None) for name in IDENTITY}
    given = {key: value for key, value in fields.items() if value is not None}
    if any(value is not None for value in sampling.values()):
        given["sampler"] = chain(model.spec.sampler, sampling)
        registry.check_chain(given["sampler"], "sampler")
    if "seed" not in model.decoding.model_fields_set:
        given = {"seed": seed, **given}
    spec = dataclasses.replace(model.spec, **given)
    own = {key: value for key, value in (body.decoding or {}).items() if value is not None}
    if own:
        said = set(fields) & {key for key, value in fields.items() if value is not None} | ({"sampler"} & set(given))
        spec = parse_decoding(own, spec)
        for key in sorted(said & set(own)):
            if getattr(spec, key) != given[key]:
                raise UserError(
                    f"contradicts {_said_by(key, body, sampling)}", field=f"decoding.{key}", value=own[key],
                    hint="keep one of the two",
                )  # fmt: skip
        model.roster.check(spec)
    if _trace(body) and spec.logprobs is None:
        spec = dataclasses.replace(spec, logprobs=TRACED)
    limited = "max_tokens" in own or fields.get("max_tokens") is not None
    if context and limited and spec.max_tokens > context:
        field = _named("max_tokens", body) or "decoding.max_tokens"
        raise UserError(f"more than the model's context of {context:,} tokens", field=field, value=spec.max_tokens)
    overflow = model.decoding.overflow
    return spec, "shorten" if overflow == "error" and not limited else overflow


def _said_by(key: str, body: Sampled, sampling: Mapping[str, Any]) -> str:
    """The field of the body that says the same as a key of `decoding`."""
    if key == "sampler":
        return ", ".join(f"{name} = {value}" for name, value in sampling.items() if value is not None)
    name = _named(key, body)
    return key if name is None else f"{name} = {getattr(body, name)}"


def _named(key: str, body: Sampled) -> str | None:
    """The field of the body that says this key of a specification, if one does."""
    names = {"max_tokens": ("max_completion_tokens", "max_output_tokens", "max_tokens")}.get(key, (key,))
    return next((name for name in names if getattr(body, name, None) is not None), None)


def _requests(
    body: Sampled, id: str, prompts: Sequence[Prompt], spec: DecodingSpec, overflow: str
) -> tuple[Request, ...]:
    """The first prompt's noise is what the same prompt alone would have."""
    noise = body.noise_id or ""
    return tuple(
        Request(f"{id}.{i}" if i else id, f"{noise}/{i}" if i else noise, prompt, spec, overflow=overflow)
        for i, prompt in enumerate(prompts)
    )


def _turn(role: str, content: str, name: str | None = None) -> dict[str, Any]:
    turn = {"role": "system" if role == "developer" else role, "content": content}
    return turn if name is None else {**turn, "name": name}


def _shown(top: int | None, body: Sampled) -> int | None:
    """Alternatives to show: those asked for by OpenAI's fields, or by `decoding.logprobs`."""
    own = (body.decoding or {}).get("logprobs")
    return top if top is not None else own


def _same(name: str, value: Any, other: str, second: Any) -> Any:
    if value is not None and second is not None and value != second:
        raise UserError(f"contradicts {other} = {second}", field=name, value=value, hint=f"keep {name}")
    return value if value is not None else second


def _usage(body: Choices) -> bool:
    return bool(body.stream_options and body.stream_options.include_usage)


def _trace(body: Sampled) -> bool:
    if body.trace and not body.stream:
        raise UserError("only with stream: true", field="trace", value=True)
    return bool(body.trace)
