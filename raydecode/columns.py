"""The output's columns besides `id`, `sample`, the input's own and `error`: one line each, read by every room.

The job file checks names here and documents itself from here, `corpus` takes the types, the generation actors fill the
values in (`actors/rows.py`, one getter per name). A new column is a line here and a getter there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "json", "count", "number", "seconds", "ids", "logprobs", "alternatives"]
"""number: a real one; ids: list of token ids; logprobs: list of nats; alternatives: list of lists of (token, logprob);
json: JSON text"""


@dataclass(frozen=True, slots=True)
class Column:
    """kind: what a cell holds; meaning: a line for the manual; implied: written because another was asked for."""

    kind: Kind
    meaning: str
    implied: bool = False


COLUMNS: Mapping[str, Column] = {
    "text": Column("text", "the generated text (always written)"),
    "finish_reason": Column("text", "eos, stop, length, monitor, cancelled or error (always written)"),
    "stopped_by": Column(
        "text", "what ended the row: the stop string, `token <id>`, or the monitor and what it said; null otherwise"
    ),
    "tokens": Column("ids", "ids of the generated tokens"),
    "logprobs": Column(
        "logprobs",
        "log-probability of each token under the raw model, nats; the k likeliest with decoding.logprobs: k",
    ),
    "top_logprobs": Column("alternatives", "the k likeliest tokens at each position", implied=True),
    "prompt": Column("text", "the rendered prompt, or the messages as JSON"),
    "prompt_tokens": Column("count", "tokens of the prompt"),
    "output_tokens": Column("count", "generated tokens"),
    "cached_tokens": Column("count", "prompt tokens found in the prefix cache"),
    "forwards": Column("count", "forward passes of the model that the row took part in"),
    "tokens_per_forward": Column("number", "generated tokens over forward passes"),
    "drafter": Column("text", "name of the row's drafter card (auto: see drafting); null without one"),
    "drafted": Column("count", "tokens that a drafter proposed"),
    "accepted": Column("count", "proposed tokens that were kept"),
    "draft_failures": Column("count", "times that a drafter failed for this row and it went on without a draft"),
    "draft_s": Column("seconds", "the row's share of the seconds in its drafters, and of choosing among them"),
    "verify_s": Column("seconds", "seconds of forwards, by the drafted tokens' part of all tokens in them"),
    "drafting": Column(
        "json",
        "drafter -> forwards, tokens, drafted, accepted, draft_s, verify_s, failures; by depth offered and kept; JSON",
    ),
    "drafter_bytes": Column("count", "memory that the row's drafter held at its end, shared tables included"),
    "replay_mismatches": Column("count", "tokens of a resumed row that this engine would have chosen otherwise"),
    "preempted": Column("count", "times the row gave its cache to an earlier one and read its text anew"),
    "queued_s": Column("seconds", "seconds between submission and a slot"),
    "first_token_s": Column("seconds", "seconds between submission and the first token"),
    "total_s": Column("seconds", "seconds between submission and the last token"),
    "finished_at": Column("seconds", "when the row left the engine, Unix time in seconds"),
    "reports": Column("json", "what the monitors said, then samplers with a report (mirostat), as JSON"),
    "decoding": Column("json", "the row's full specification, as JSON"),
    "worker": Column("text", "which actor generated the row"),
}

CHOICES: Mapping[str, Column] = {name: one for name, one in COLUMNS.items() if not one.implied}
"""What `output.columns` may name."""
