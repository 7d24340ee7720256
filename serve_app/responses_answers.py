"""The answer of `/v1/responses` and its typed events, in OpenAI's order:

    created, in_progress, output_item.added, content_part.added, output_text.delta ..., output_text.done,
    content_part.done, output_item.done, and completed or incomplete (the text reached its limit)

A fault after the first event is `response.failed`. Beside OpenAI's fields the last event's response has `raydecode`
(see `answers`), and with `trace` every delta.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raydecode.events import OutcomeEvent
from serve_app.answers import Told, content, usage
from serve_app.bodies import IDLE
from serve_app.failures import ApiError
from serve_app.fold import Piece, Scored, named, whole
from serve_app.responses_body import ResponsesBody

Json = dict[str, Any]


class Responses:
    """One text. body: what the response says of its own request."""

    done = b""
    """A stream of typed events ends with the last of them."""

    def __init__(self, told: Told, body: ResponsesBody) -> None:
        self.told, self._body = told, body
        self._number = 0
        self._text = ""
        self._scored: list[Scored] = []
        self._begun = False
        self._item = told.id.replace("resp_", "msg_", 1)
        self._migrations = 0

    def piece(self, prompt: int, sample: int, piece: Piece, migrations: int) -> list[Json]:
        events: list[Json] = []
        self._migrations = migrations
        if not self._begun:
            self._begun = True
            events += [
                self._event("response.created", response=self._response("in_progress")),
                self._event("response.in_progress", response=self._response("in_progress")),
                self._event("response.output_item.added", output_index=0, item=self._message("in_progress", [])),
                self._event("response.content_part.added", **self._place(), part=self._part("", ())),
            ]
        if piece.text or piece.scored or piece.trace:
            self._text += piece.text
            self._scored += piece.scored
            delta = self._event(
                "response.output_text.delta", **self._place(), delta=piece.text, logprobs=self._logprobs(piece.scored)
            )
            if piece.trace:
                delta["raydecode"] = named(piece.trace, self.told.table)
            events.append(delta)
        return events

    def end(self, outcomes: Sequence[Sequence[OutcomeEvent]]) -> list[Json]:
        outcome = outcomes[0][0]
        status, part = _status(outcome), self._part(self._text, self._scored)
        return [
            self._event(
                "response.output_text.done", **self._place(), text=self._text, logprobs=self._logprobs(self._scored)
            ),
            self._event("response.content_part.done", **self._place(), part=part),
            self._event("response.output_item.done", output_index=0, item=self._message(status, [part])),
            self._event(f"response.{status}", response=self._finished(outcomes, part, self._migrations)),
        ]

    def failed(self, error: ApiError) -> Json:
        said = {"code": error.code or error.type, "message": error.message}
        return self._event("response.failed", response={**self._response("failed"), "error": said})

    def answer(self, outcomes: Sequence[Sequence[OutcomeEvent]], migrations: int) -> Json:
        outcome = outcomes[0][0]
        scored = whole(outcome, self.told.table) if self.told.call.top is not None else ()
        return self._finished(outcomes, self._part(outcome.text.decode("utf-8", "replace"), scored), migrations)

    # ------------------------------------------------------------------ parts
    def _event(self, type: str, **fields: Any) -> Json:
        event = {"type": type, "sequence_number": self._number, **fields}
        self._number += 1
        return event

    def _place(self) -> Json:
        return {"item_id": self._item, "output_index": 0, "content_index": 0}

    def _part(self, text: str, scored: Sequence[Scored]) -> Json:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self._logprobs(scored)}

    def _logprobs(self, scored: Sequence[Scored]) -> list[Json]:
        top = self.told.call.top
        return [] if top is None else [content(one, top, self.told.table) for one in scored]

    def _message(self, status: str, parts: list[Json]) -> Json:
        return {"id": self._item, "type": "message", "role": "assistant", "status": status, "content": parts}

    def _finished(self, outcomes: Sequence[Sequence[OutcomeEvent]], part: Json, migrations: int) -> Json:
        outcome = outcomes[0][0]
        status, counts = _status(outcome), usage(outcomes)
        response = self._response(status)
        response["output"] = [self._message(status, [part])]
        response["incomplete_details"] = {"reason": "max_output_tokens"} if status == "incomplete" else None
        response["usage"] = {
            "input_tokens": counts["prompt_tokens"],
            "input_tokens_details": {**counts["prompt_tokens_details"], "cache_write_tokens": 0},
            "output_tokens": counts["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": counts["total_tokens"],
        }
        response["raydecode"] = self.told.ours([(0, outcome)], migrations)
        return response

    def _response(self, status: str) -> Json:
        """The response as far as it is known; its own request is repeated in it."""
        body, told = self._body, self.told
        return {
            "id": told.id, "object": "response", "created_at": told.created, "status": status, "model": told.call.model,
            "output": [], "error": None, "incomplete_details": None, "usage": None, "background": False,
            "instructions": body.instructions, "max_output_tokens": body.max_output_tokens,
            "temperature": body.temperature, "top_p": body.top_p, "top_logprobs": body.top_logprobs or 0,
            "text": {"format": {"type": "text"}}, "tools": [], "tool_choice": "none", "parallel_tool_calls": False,
            "previous_response_id": None, "truncation": "disabled", "store": False,
            **{name: getattr(body, name) for name in IDLE if name != "metadata"}, "metadata": dict(body.metadata or {}),
        }  # fmt: skip


def _status(outcome: OutcomeEvent) -> str:
    return "incomplete" if outcome.reason == "length" else "completed"
