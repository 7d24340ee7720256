"""The endpoints that answer with texts: how each reads its body and how its answer looks.

A route and a line of a batch take the same entry, so that one body means one thing wherever it comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from serve_app import translate
from serve_app.answers import Chat, Completion, Told
from serve_app.bodies import ChatBody, CompletionBody, Sampled
from serve_app.relay import Shape
from serve_app.responses_answers import Responses
from serve_app.responses_body import ResponsesBody
from serve_app.service import Service, new_id

Shaped = Callable[[Told], Shape]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """body: its model; call: the body as requests (`translate`); shape: of its answers; prefix: of their ids"""

    body: type[Sampled]
    call: Callable[..., translate.Call]
    shape: Callable[[Any], Shaped]
    prefix: str

    def read(self, service: Service, body: Sampled, seed: int) -> tuple[translate.Call, str, Shaped]:
        """The body's requests, the id of the answer, and how that looks. Raises UserError."""
        id, model = new_id(self.prefix), service.model(body.model)
        return self.call(body, model, id, seed, service.served(body.model).context), id, self.shape(body)


CHAT = Endpoint(ChatBody, translate.chat, lambda body: Chat, "chatcmpl-")
COMPLETIONS = Endpoint(CompletionBody, translate.completion, lambda body: Completion, "cmpl-")
RESPONSES = Endpoint(ResponsesBody, translate.responses, lambda body: partial(Responses, body=body), "resp_")

ENDPOINTS: Mapping[str, Endpoint] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETIONS,
    "/v1/responses": RESPONSES,
}
"""By path; those that a batch may name."""
