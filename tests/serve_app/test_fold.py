"""Events become pieces that, put together, are the whole answer, whatever the tokens' borders."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from raydecode.engine.ending import first_stop, settled
from raydecode.events import Event, OutcomeEvent, RowStats, StepEvent, TextEvent, TokenEvent
from raydecode.request import RowId
from raydecode.tree import TokenTree
from serve_app.fold import LEAST, Sample, account, finite, likeliest, spelled, whole

ROW = RowId("r")


def told(tokens: list[bytes], stops: tuple[bytes, ...] = ()) -> tuple[list[list[Event]], OutcomeEvent]:
    """The events of an engine whose token i has `tokens[i]`, a step each; then EOS, unless a stop ends it."""
    text, shown, steps, logprobs = b"", 0, [], []
    reason, ids = "eos", []
    for t, piece in enumerate([*tokens, b""]):
        step: list[Event] = [TokenEvent(ROW, t, t, piece, logp=-0.5 * t, top=((t, -0.5 * t), (0, -9.0)))]
        ids.append(t)
        logprobs.append((-0.5 * t, ((t, -0.5 * t), (0, -9.0))))
        text += piece
        cut = first_stop(text, len(piece), stops) if stops else -1
        ends = cut >= 0 or t == len(tokens)
        if cut >= 0:
            reason, text = "stop", text[:cut]
        end = len(text) if ends else settled(text, stops)
        if end > shown:
            step.append(TextEvent(ROW, text[shown:end]))
            shown = end
        steps.append(step)
        if ends:
            break
    outcome = OutcomeEvent(ROW, reason, tuple(ids), text, logprobs=tuple(logprobs))  # type: ignore[arg-type]
    steps[-1].append(outcome)
    return steps, outcome


@given(
    st.text("aä€😀", min_size=0, max_size=12),
    st.lists(st.integers(0, 30), max_size=10),
    st.sampled_from([(), ("a€".encode(),), ("😀".encode(), b"aa")]),
    st.integers(1, 4),
)
def test_pieces_put_together_are_the_whole(text: str, cuts: list[int], stops: tuple[bytes, ...], joined: int) -> None:
    raw = text.encode()
    edges = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    tokens = [raw[a:b] for a, b in itertools.pairwise(edges)]
    steps, outcome = told(tokens, stops)
    table = [*tokens, b""]
    fold = Sample(scored=True, trace=False, offset=3)
    said, scored = "", []
    for i in range(0, len(steps), joined):
        piece = fold.take([event for step in steps[i : i + joined] for event in step])
        assert "�" not in piece.text
        said += piece.text
        scored += piece.scored
    assert said == outcome.text.decode()
    assert tuple(scored) == whole(outcome, table, 3)
    assert all(0 <= one.at - 3 <= len(said) for one in scored)
    assert b"".join(one.bytes for one in scored)[: len(outcome.text)] == outcome.text


def test_bytes_that_are_no_text_are_replaced_alike() -> None:
    steps, outcome = told([b"a\xff", b"\xc3"])
    fold = Sample(scored=False, trace=False)
    assert "".join(fold.take(step).text for step in steps) == outcome.text.decode("utf-8", "replace") == "a��"


def test_tokens_are_spelled() -> None:
    assert [spelled(4, b""), spelled(1, "ä".encode()), spelled(2, b"\xf0\x9f")] == ["token:4", "ä", "bytes:\\xf0\\x9f"]
    assert finite(float("-inf")) == finite(None) == LEAST
    assert finite(-3.0) == -3.0


def test_a_trace_says_which_tokens_a_draft_gave() -> None:
    events: list[Event] = [TokenEvent(ROW, t, t, b"a", logp=-1.0) for t in range(4, 7)]
    events.append(StepEvent(ROW, 4, TokenTree.chain((9, 4, 5)), (0, 1, 2), (4, 5, 6), "ngram"))
    piece = Sample(scored=False, trace=True).take(events)
    assert piece.trace is not None
    assert [one["drafted"] for one in piece.trace["tokens"]] == [True, True, False]
    assert piece.trace["steps"][0]["parents"] == [-1, 0, 1]


def test_the_likeliest_are_so_per_token() -> None:
    def one(sample: int, *logps: float) -> OutcomeEvent:
        ids = tuple(range(len(logps)))
        return OutcomeEvent(RowId("r", sample), "eos", ids, b"", logprobs=tuple((logp, ()) for logp in logps))

    outcomes = [one(0, -1.0, -1.0), one(1, -0.5), one(2, -1.0), one(3, -0.4, -0.4)]
    assert [best.row.sample for best in likeliest(outcomes, 3)] == [3, 1, 0]


def test_an_account_is_json() -> None:
    import json

    outcome = OutcomeEvent(ROW, "monitor", (1,), b"a", cause="loop: a", reports=({"x": 1},), stats=RowStats(drafted=3))
    said = json.loads(json.dumps(account(outcome, 2)))
    assert (said["index"], said["reason"], said["stopped_by"], said["stats"]["drafted"]) == (2, "monitor", "loop: a", 3)
