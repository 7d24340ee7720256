"""Rows, ids, resume: the pure core of the batch pipeline. No Ray, no engine.

storage   the file-system calls the protocol stands on          log       the commit log: one record is the commit
discover  which files, and are they what they were              history   the same log, read
inputs    positions, units                                      records   what the log says, and its fold
reading   a span of a file to a block                           ledger    leases and blame (pure): who does what next
staging   files that cannot be cut: a copy that can             places    which position is where
templates columns to prompts                                    workers   what it knows of a worker, watchdog
rows      the output's schema                                   hunt      finding the row that kills engines
parts     a worker's finished rows as a file                    endings   why a job ends before it is done
verify    re-check a finished output                            eta       time left, with an interval
provenance which engines made the rows, with which promise
"""

from raydecode.corpus.history import Summary, finished, replay
from raydecode.corpus.inputs import Corpus, InputFile, discover, open_corpus, plan_units, read_unit
from raydecode.corpus.intervals import Cover, IntervalSet, Span
from raydecode.corpus.ledger import Ledger
from raydecode.corpus.log import Fenced, Log
from raydecode.corpus.messages import Limits
from raydecode.corpus.parts import PartBuilder
from raydecode.corpus.rows import OutputSchema, RowFault, Sample
from raydecode.corpus.storage import open_storage, prepare
from raydecode.corpus.templates import Prompt, Renderer
from raydecode.corpus.verify import Verification, verify

__all__ = [
    "Corpus",
    "Cover",
    "Fenced",
    "InputFile",
    "IntervalSet",
    "Ledger",
    "Limits",
    "Log",
    "OutputSchema",
    "PartBuilder",
    "Prompt",
    "Renderer",
    "RowFault",
    "Sample",
    "Span",
    "Summary",
    "Verification",
    "discover",
    "finished",
    "open_corpus",
    "open_storage",
    "plan_units",
    "prepare",
    "read_unit",
    "replay",
    "verify",
]
