"""Answers and chunks of completions and chat completions, as OpenAI's clients read them. Pure.

Beside OpenAI's fields every answer, and the last chunk of a choice, has
    raydecode: {seed, noise_id, migrations, samples: [{index, reason, stopped_by, tokens, stats, drafting, reports}]}
and with `trace` every chunk {tokens: [...], steps: [...]} of its one choice (see `fold`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raydecode import __version__
from raydecode.events import OutcomeEvent
from serve_app.fold import FINISH, Piece, Scored, account, finite, likeliest, named, spelled, whole
from serve_app.gateway import Served
from serve_app.translate import Call

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Prompted:
    """A prompt that an answer repeats (echo): its text, and its tokens when they were scored."""

    text: str = ""
    scored: tuple[Scored, ...] = ()


@dataclass(frozen=True, slots=True)
class Told:
    """What an answer says besides its choices.

    fingerprint: asked for when the first events are there: a replica that has the request has said what it is
    table: token id -> bytes, where log-probabilities are shown; prompts: one per request, empty without echo
    """

    id: str
    created: int
    call: Call
    fingerprint: Callable[[], str]
    table: Sequence[bytes] = ()
    prompts: Sequence[Prompted] = ()

    def frame(self, object: str) -> Json:
        return {
            "id": self.id, "object": object, "created": self.created, "model": self.call.model,
            "system_fingerprint": self.fingerprint(),
        }  # fmt: skip

    def ours(self, samples: Sequence[tuple[int, OutcomeEvent]], migrations: int) -> Json:
        """The extension field."""
        return {
            "seed": self.call.spec.seed, "noise_id": self.call.noise_id, "migrations": migrations,
            "samples": [account(outcome, index) for index, outcome in samples],
        }  # fmt: skip


def fingerprint(model: Served) -> str:
    """Equal fingerprints and seeds promise equal texts as far as the engine promises it."""
    parts = (model.name, model.engine, model.dtype, model.promise, __version__)
    return "fp_" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def usage(outcomes: Sequence[Sequence[OutcomeEvent]]) -> Json:
    """Tokens of prompts (once per prompt) and of all texts made, also of those that `best_of` dropped."""
    prompt = sum(held[0].stats.prompt_tokens for held in outcomes if held)
    cached = sum(held[0].stats.cached_tokens for held in outcomes if held)
    made = sum(len(one.tokens) for held in outcomes for one in held)
    return {
        "prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }  # fmt: skip


class Chat:
    """`chat.completion` and its chunks. One prompt; a choice per sample."""

    def __init__(self, told: Told) -> None:
        self.told = told
        self._begun: set[int] = set()

    def piece(self, prompt: int, sample: int, piece: Piece, migrations: int) -> list[Json]:
        told, outcome = self.told, piece.outcome
        chunks: list[Json] = []
        if sample not in self._begun:
            self._begun.add(sample)
            chunks.append(self._chunk(sample, {"role": "assistant", "content": ""}))
        if piece.text or piece.scored or piece.trace:
            chunk = self._chunk(sample, {"content": piece.text}, self._logprobs(piece.scored))
            if piece.trace:
                chunk["raydecode"] = named(piece.trace, told.table)
            chunks.append(chunk)
        if outcome is not None:
            last = self._chunk(sample, {}, finish=FINISH[outcome.reason])
            last["raydecode"] = told.ours([(sample, outcome)], migrations)
            chunks.append(last)
        return chunks

    def end(self, outcomes: Sequence[Sequence[OutcomeEvent]]) -> list[Json]:
        if not self.told.call.usage:
            return []
        return [{**self.told.frame("chat.completion.chunk"), "choices": [], "usage": usage(outcomes)}]

    def answer(self, outcomes: Sequence[Sequence[OutcomeEvent]], migrations: int) -> Json:
        told, held = self.told, outcomes[0]
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": one.text.decode("utf-8", "replace"), "refusal": None},
                "logprobs": None if told.call.top is None else self._logprobs(whole(one, told.table)),
                "finish_reason": FINISH[one.reason],
            }
            for i, one in enumerate(held)
        ]
        answer = {**told.frame("chat.completion"), "choices": choices, "usage": usage(outcomes)}
        if told.call.metadata is not None:
            answer["metadata"] = dict(told.call.metadata)
        return {**answer, "raydecode": told.ours(list(enumerate(held)), migrations)}

    def _chunk(self, index: int, delta: Json, logprobs: Json | None = None, finish: str | None = None) -> Json:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        chunk = {**self.told.frame("chat.completion.chunk"), "choices": [choice]}
        return {**chunk, "usage": None} if self.told.call.usage else chunk

    def _logprobs(self, scored: Sequence[Scored]) -> Json | None:
        top = self.told.call.top
        if top is None:
            return None
        return {"content": [content(one, top, self.told.table) for one in scored], "refusal": None}


def content(one: Scored, top: int, table: Sequence[bytes]) -> Json:
    """A token of a chat's log-probabilities."""
    return {
        **_token(one.token, one.bytes, one.logp),
        "top_logprobs": [_token(id, table[id], logp) for id, logp in one.top[:top]],
    }


def _token(id: int, text: bytes, logp: float | None) -> Json:
    return {"token": spelled(id, text), "logprob": finite(logp), "bytes": list(text)}


class Completion:
    """`text_completion` and its chunks. Choices: n per prompt, prompt by prompt."""

    def __init__(self, told: Told) -> None:
        self.told = told
        self._begun: set[int] = set()

    def piece(self, prompt: int, sample: int, piece: Piece, migrations: int) -> list[Json]:
        told, outcome, index = self.told, piece.outcome, self._index(prompt, sample)
        chunks: list[Json] = []
        if index not in self._begun:
            self._begun.add(index)
            if told.call.echo:
                said = told.prompts[prompt]
                chunks.append(self._chunk(index, said.text, self._logprobs(said.scored)))
        if piece.text or piece.scored or piece.trace:
            chunk = self._chunk(index, piece.text, self._logprobs(piece.scored))
            if piece.trace:
                chunk["raydecode"] = named(piece.trace, told.table)
            chunks.append(chunk)
        if outcome is not None:
            last = self._chunk(index, "", finish=FINISH[outcome.reason])
            last["raydecode"] = told.ours([(index, outcome)], migrations)
            chunks.append(last)
        return chunks

    def end(self, outcomes: Sequence[Sequence[OutcomeEvent]]) -> list[Json]:
        if not self.told.call.usage:
            return []
        return [{**self.told.frame("text_completion"), "choices": [], "usage": usage(outcomes)}]

    def answer(self, outcomes: Sequence[Sequence[OutcomeEvent]], migrations: int) -> Json:
        told, call = self.told, self.told.call
        chosen = [likeliest(held, call.n) if call.spec.n > call.n else held for held in outcomes]
        indexed = [(self._index(p, i), p, one) for p, held in enumerate(chosen) for i, one in enumerate(held)]
        choices = []
        for index, p, one in indexed:
            said = told.prompts[p] if call.echo else Prompted()
            scored = (*said.scored, *whole(one, told.table, len(said.text))) if call.top is not None else ()
            text = said.text + one.text.decode("utf-8", "replace")
            choices.append(
                {"index": index, "text": text, "logprobs": self._logprobs(scored), "finish_reason": FINISH[one.reason]}
            )
        answer = {**told.frame("text_completion"), "choices": choices, "usage": usage(outcomes)}
        return {**answer, "raydecode": told.ours([(index, one) for index, _p, one in indexed], migrations)}

    def _index(self, prompt: int, sample: int) -> int:
        return prompt * self.told.call.n + sample

    def _chunk(self, index: int, text: str, logprobs: Json | None = None, finish: str | None = None) -> Json:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
        chunk = {**self.told.frame("text_completion"), "choices": [choice]}
        return {**chunk, "usage": None} if self.told.call.usage else chunk

    def _logprobs(self, scored: Sequence[Scored]) -> Json | None:
        top, table = self.told.call.top, self.told.table
        if top is None:
            return None
        return {
            "tokens": [spelled(one.token, one.bytes) for one in scored],
            "token_logprobs": [one.logp if one.logp is None else finite(one.logp) for one in scored],
            "top_logprobs": [None if one.logp is None else alternatives(one, top, table) for one in scored],
            "text_offset": [one.at for one in scored],
        }


def alternatives(one: Scored, top: int, table: Sequence[bytes]) -> Mapping[str, float]:
    """The likeliest and the token itself, by their spelling."""
    own = {spelled(one.token, one.bytes): finite(one.logp)}
    return {**{spelled(id, table[id]): finite(logp) for id, logp in one.top[:top]}, **own}
