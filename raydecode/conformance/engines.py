"""Laws of engines: what comes out depends on the requests, not on how they were run.

Each law takes `make`, which builds a fresh engine (`make(slots=4, stream=True)`), and the requests to run. Equality is
that of outcomes and token events; an engine that only promises near-ties is compared by its own tests.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raydecode.conformance.drive import Run, drive
from raydecode.conformance.law import require
from raydecode.contracts import Engine
from raydecode.events import OutcomeEvent, TokenEvent
from raydecode.request import Card, DecodingSpec, Request, RowId

Make = Callable[..., Engine]


def every_row_ends_once(make: Make, requests: Sequence[Request]) -> None:
    """n outcomes per request, each the last event of its row; or one, if the request itself is at fault."""
    run = drive(make(slots=4), requests)
    for request in requests:
        ended = sorted(row.sample for row in run.outcomes if row.request == request.id)
        whole = ended == [0] and run.outcomes[RowId(request.id)].error is not None
        fine = ended == list(range(request.decoding.n)) or whole
        require(fine, make, "every_row_ends_once", f"{request.id}: samples {ended} of {request.decoding.n}")
    for row, outcome in run.outcomes.items():
        tokens = tuple(event.token for event in run.tokens.get(row, ()))
        require(tokens == outcome.tokens, make, "every_row_ends_once", f"{row}: events {tokens}, {outcome}")
        require((outcome.error is None) == (outcome.reason != "error"), make, "every_row_ends_once", f"{outcome}")


def text_ignores_the_batch(make: Make, requests: Sequence[Request], variants: Sequence[Mapping[str, Any]]) -> None:
    """Alone, in one batch, backwards, trickling in, and under every variant of the engine's own settings."""
    alone = Run()
    for request in requests:
        one = drive(make(slots=1), [request])
        alone.outcomes |= one.outcomes
        alone.tokens |= one.tokens
    for variant in variants:
        for name, order in (("in order", requests), ("backwards", requests[::-1])):
            found = alone.difference(drive(make(**variant), order))
            require(found is None, make, "text_ignores_the_batch", f"{dict(variant)}, {name}: {found}")
    engine, trickled = make(slots=3), Run()
    for request in requests:
        engine.submit(request)
        trickled.take(engine.step())
    while engine.busy:
        trickled.take(engine.step())
    found = alone.difference(trickled)
    require(found is None, make, "text_ignores_the_batch", f"one request per step: {found}")


def samples_are_their_own(make: Make, request: Request) -> None:
    """Sample j is the same for every n > j, and the samples of one request are not copies of each other."""
    runs = {n: drive(make(slots=4), [_with(request, n=n)]) for n in (1, 2, 5)}
    for n in (1, 2):
        for sample in range(n):
            row = RowId(request.id, sample)
            few, many = runs[n].outcomes[row].tokens, runs[5].outcomes[row].tokens
            require(few == many, make, "samples_are_their_own", f"sample {sample}: {few} of {n}, {many} of 5")
    texts = {outcome.tokens for outcome in runs[5].outcomes.values()}
    require(len(texts) > 1, make, "samples_are_their_own", f"five samples, one text: {texts}")


def equal_keys_equal_texts(make: Make, request: Request) -> None:
    """The text follows (seed, noise_id), not the request's id; another seed or noise_id is another text."""
    same = [dataclasses.replace(request, id=f"copy {i}") for i in range(3)]
    seeds = [_with(dataclasses.replace(request, id=f"seed {i}"), seed=100 + i) for i in range(3)]
    noise = [dataclasses.replace(request, id=f"noise {i}", noise_id=f"other {i}") for i in range(3)]
    texts = {row.request: one.tokens for row, one in drive(make(slots=4), [*same, *seeds, *noise]).outcomes.items()}
    require(len({texts[one.id] for one in same}) == 1, make, "equal_keys_equal_texts", f"copies differ: {texts}")
    for others in (seeds, noise):
        count = len({texts[one.id] for one in [same[0], *others]})
        require(count > 1, make, "equal_keys_equal_texts", f"another key, the same text: {texts}")


def limits_only_cut(make: Make, request: Request) -> None:
    """max_tokens = k gives the first k tokens of any larger limit: a row does not know how long it may become.

    For requests without monitors that read `max_tokens`.
    """
    whole = drive(make(slots=2), [_with(request, n=1)]).outcomes[RowId(request.id)]
    for limit in range(1, len(whole.tokens)):
        cut = drive(make(slots=2), [_with(request, n=1, max_tokens=limit)]).outcomes[RowId(request.id)]
        same = cut.tokens == whole.tokens[:limit] and cut.reason == "length"
        require(same, make, "limits_only_cut", f"max_tokens = {limit}: {cut}, whole {whole}")


def cancel_frees_at_once(make: Make, requests: Sequence[Request], after: Sequence[int] = (0, 1, 3)) -> None:
    """Cancelled requests end once per sample; the others do not notice; the slot serves a row in the next step."""
    whole = drive(make(slots=4), requests)
    for steps in after:
        gone = [request.id for request in requests[::2]]
        run = drive(make(slots=4), requests, cancel={steps: gone})
        require(set(run.outcomes) == set(whole.outcomes), make, "cancel_frees_at_once", f"after {steps}: rows missing")
        for row, outcome in run.outcomes.items():
            full = whole.outcomes[row]
            prefix = row.request in gone and outcome.reason == "cancelled"
            fine = full.tokens[: len(outcome.tokens)] == outcome.tokens if prefix else outcome == full
            require(fine, make, "cancel_frees_at_once", f"after {steps}: {outcome}, whole {full}")
    engine = make(slots=1)
    long, next_one = _with(requests[0], n=1, max_tokens=64), _with(dataclasses.replace(requests[1], id="next"), n=1)
    engine.submit(long)
    engine.submit(next_one)
    engine.step()
    engine.cancel(long.id)
    events = [event for _ in range(2) for event in engine.step()]
    moved = any(isinstance(event, TokenEvent) and event.row.request == "next" for event in events)
    require(moved, make, "cancel_frees_at_once", f"the freed slot stood empty: {events}")
    engine.cancel("nobody")
    while engine.busy:
        engine.step()


def resume_goes_on(make: Make, request: Request, drafters: Sequence[Card | None] = (None,)) -> None:
    """Cut at every token and given the delivered ids, a fresh engine ends the same and sends only what was missing."""
    plain = _with(request, n=1)
    whole = drive(make(slots=2), [plain])
    row = RowId(plain.id)
    full, events = whole.outcomes[row], whole.tokens[row]
    for cut in range(1, len(full.tokens) + 1):
        resumed = dataclasses.replace(_with(plain, drafter=drafters[cut % len(drafters)]), resume=(full.tokens[:cut],))
        run = drive(make(slots=2), [resumed])
        outcome = run.outcomes[row]
        require(outcome == full, make, "resume_goes_on", f"cut at {cut}: {outcome}, was {full}")
        require(run.tokens.get(row, []) == events[cut:], make, "resume_goes_on", f"cut at {cut}: events sent twice")
        mismatches = outcome.stats.replay_mismatches
        require(not mismatches, make, "resume_goes_on", f"cut at {cut}: {mismatches} ids are not what the noise draws")


def samples_resume_each_from_its_own(make: Make, request: Request, n: int = 3) -> None:
    """The samples of a request go on together, each from where it was: at its start, anywhere, or at its end."""
    many = _with(request, n=n)
    whole = drive(make(slots=n), [many])
    texts = [whole.outcomes[RowId(many.id, sample)].tokens for sample in range(n)]
    for cut in range(max(map(len, texts)) + 1):
        delivered = [ids[: (cut * (sample + 1)) % (len(ids) + 1)] for sample, ids in enumerate(texts)]
        run = drive(make(slots=n), [dataclasses.replace(many, resume=tuple(delivered))])
        for sample, ids in enumerate(delivered):
            row = RowId(many.id, sample)
            again, missing = run.outcomes[row], whole.tokens[row][len(ids) :]
            said = f"{row} cut at {len(ids)}: {again}, was {whole.outcomes[row]}"
            require(again == whole.outcomes[row], make, "samples_resume_each_from_its_own", said)
            require(run.tokens.get(row, []) == missing, make, "samples_resume_each_from_its_own", f"{row}: sent twice")


def refusals_are_honest(make: Make, request: Request, specs: Sequence[DecodingSpec]) -> None:
    """`refuse` says no if and only if `submit` ends in an error that says so; nothing is raised."""
    for spec in specs:
        engine = make(slots=2)
        refused = engine.refuse(spec)
        run = drive(engine, [dataclasses.replace(request, decoding=spec)])
        errors = [one.error for one in run.outcomes.values()]
        says_no = any(error is not None and error.kind == "Refused" for error in errors)
        require((refused is not None) == says_no, make, "refusals_are_honest", f"{spec}: {refused}, then {errors}")


def texts_end_at_stop_strings(make: Make, requests: Sequence[Request], eos: frozenset[int]) -> None:
    """A text ends before the first stop string, within the step that completes it, across tokens as inside one."""
    run = drive(make(slots=4), requests)
    for request in requests:
        for sample in range(request.decoding.n):
            row = RowId(request.id, sample)
            outcome = run.outcomes[row]
            if outcome.reason in ("error", "monitor"):
                continue
            text, reason, used = _naive_end(run.tokens[row], request.decoding, eos)
            require(used == len(outcome.tokens), make, "texts_end_at_stop_strings", f"{row}: ends after {used} tokens")
            require(text == outcome.text, make, "texts_end_at_stop_strings", f"{row}: {outcome.text!r}, is {text!r}")
            fits = reason == outcome.reason
            require(fits, make, "texts_end_at_stop_strings", f"{row}: {outcome.reason}, is {reason}")


def shown_text_is_never_taken_back(make: Make, requests: Sequence[Request]) -> None:
    """TextEvents joined are the outcome's text (of a cancelled row a beginning of it), and no prefix of them lied."""
    run = drive(make(slots=4, stream=True), requests)
    for row, outcome in run.outcomes.items():
        shown = run.texts.get(row, b"")
        require(shown == outcome.text, make, "shown_text_is_never_taken_back", f"{row}: {shown!r}, is {outcome.text!r}")


def faults_stay_alone(make: Make, good: Sequence[Request], bad: Sequence[Request]) -> None:
    """Rows at fault end with an error that names stage and kind; the good ones are what they are without them."""
    alone = drive(make(slots=4), good)
    mixed = [request for pair in zip(bad, good, strict=False) for request in pair] + list(good[len(bad) :])
    run = drive(make(slots=4), mixed)
    for row, outcome in alone.outcomes.items():
        require(run.outcomes[row] == outcome, make, "faults_stay_alone", f"{run.outcomes[row]}, alone {outcome}")
    for request in bad:
        ended: list[OutcomeEvent] = [one for row, one in run.outcomes.items() if row.request == request.id]
        named = bool(ended) and all(one.error and one.error.stage and one.error.kind for one in ended)
        require(named, make, "faults_stay_alone", f"{request.id}: {ended}")


def _naive_end(events: Sequence[TokenEvent], spec: DecodingSpec, eos: frozenset[int]) -> tuple[bytes, str, int]:
    """The rule in its simplest words, searched from the start after every token: (text, reason, tokens used)."""
    text = b""
    for used, event in enumerate(events, 1):
        if event.token in spec.stop_tokens:
            return text, "stop", used
        if event.token in eos and not spec.ignore_eos:
            return text, "eos", used
        text += event.bytes
        found = [at for stop in spec.stop if (at := text.find(stop)) >= 0]
        if found:
            return text[: min(found)], "stop", used
    return text, "length", len(events)


def _with(request: Request, **fields: Any) -> Request:
    return dataclasses.replace(request, decoding=dataclasses.replace(request.decoding, **fields))
