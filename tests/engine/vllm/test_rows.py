"""A row's fold of tokens on a table of five tokens: no vLLM needed."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from raydecode.engine.vllm.params import map_chain
from raydecode.engine.vllm.rows import Row, facts
from raydecode.request import DecodingSpec, RowId

BYTES = (b"a", b"b", b"ab", "é".encode()[:1], b"")
EOS = frozenset({4})


def fold(spec: DecodingSpec, tokens: list[int], limit: int = 8) -> tuple[Row, bytes]:
    row, shown = Row(RowId("r"), spec, map_chain(()), (0,), limit, 1), b""
    for token in tokens:
        if row.reason is None:
            row.take(token, BYTES, EOS, None, ())
            event = row.news()
            shown += event.bytes if event else b""
    return row, shown


@pytest.mark.parametrize(
    ("spec", "tokens", "reason", "text", "length"),
    [
        (DecodingSpec(), [0, 1, 4, 0], "eos", b"ab", 3),
        (DecodingSpec(ignore_eos=True), [0, 4, 1, 0], None, b"aba", 4),
        (DecodingSpec(stop_tokens=(1,)), [0, 1, 0], "stop", b"a", 2),
        (DecodingSpec(stop_tokens=(4,)), [0, 4], "stop", b"a", 2),
        (DecodingSpec(stop_tokens=(4,), ignore_eos=True), [0, 4], "stop", b"a", 2),
        (DecodingSpec(stop=(b"ba",)), [0, 1, 2, 0], "stop", b"a", 3),
        (DecodingSpec(stop=(b"b", b"ab")), [0, 2], "stop", b"a", 2),
        (DecodingSpec(), [0] * 9, "length", b"a" * 8, 8),
        (DecodingSpec(stop=(b"aaaaaaaa",)), [0] * 9, "stop", b"", 8),
    ],
)
def test_how_a_row_ends(spec: DecodingSpec, tokens: list[int], reason: str | None, text: bytes, length: int) -> None:
    row, shown = fold(spec, tokens)
    assert (row.reason, row.text, len(row.output)) == (reason, text, length)
    assert text.startswith(shown)
    if reason:
        assert shown == text


def test_half_a_character_is_shown_only_when_the_row_ends() -> None:
    row, shown = fold(DecodingSpec(), [0, 3])
    assert shown == b"a"
    row.reason = "cancelled"
    last = row.news()
    assert last
    assert last.bytes == BYTES[3]


def test_logprobs_of_one_position() -> None:
    @dataclass
    class Logprob:
        logprob: float
        rank: int | None

    unlikely = {7: Logprob(-5.0, 31), 2: Logprob(-0.5, 1), 3: Logprob(-1.5, 2)}
    assert facts(unlikely, 7, 2) == (-5.0, ((2, -0.5), (3, -1.5)))
    assert facts({2: Logprob(-0.5, 1)}, 2, 0) == (-0.5, ())


def test_what_drafters_did_is_by_drafter() -> None:
    row, _ = fold(DecodingSpec(), [0] * 8)
    row.drafter, row.forwards, row.accepted, row.drafted, row.draft_steps, row.draft_failures = "ngram", 5, 3, 12, 4, 1
    stats = row.outcome(0.0).stats
    assert set(stats.drafting) == {"ngram", "none"}
    for total in ("forwards", "drafted", "accepted"):
        assert sum(getattr(one, total) for one in stats.drafting.values()) == getattr(stats, total)
    assert sum(one.tokens for one in stats.drafting.values()) == len(row.output)
    assert stats.drafting["ngram"].failures == 1
    row.drafter = None
    assert row.outcome(0.0).stats.drafting == {}
