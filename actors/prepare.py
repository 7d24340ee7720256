"""The CPU stage: a block of rows becomes a block of prompts, and what cannot become one becomes an error row.

    _text string      the prompt, when it is complete text
    _messages string  JSON, when the model's chat template is to render it; at most one of the two is set

No tokens yet: the engine tokenises, so that the readers need no model. The same function serves the readers of Ray
Data and an actor that reads a unit itself (a lost block, a suspect).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from raydecode.corpus.inputs import Corpus, index_occurrences, needs_index, read_units
from raydecode.corpus.intervals import Span
from raydecode.corpus.rows import RowFault, block_errors, block_rows, with_faults
from raydecode.corpus.templates import Renderer

TEXT, MESSAGES = "_text", "_messages"


class Prepare:
    """block -> block with prompts. Picklable: the template is compiled where the rows are.

    prompt:  the job's prompt section (`PromptConfig.section`)
    columns: the input columns
    """

    def __init__(self, prompt: Mapping[str, Any], columns: Sequence[str]) -> None:
        self.prompt, self.columns = dict(prompt), tuple(columns)
        self._renderer: Renderer | None = None

    def __call__(self, block: pa.Table) -> pa.Table:
        renderer = self._renderer = self._renderer or Renderer(self.prompt, self.columns)
        texts: list[str | None] = []
        messages: list[str | None] = []
        faults: dict[int, RowFault] = {}
        for i, (row, known) in enumerate(zip(block_rows(block), block_errors(block), strict=True)):
            text = chat = None
            if known is None:
                try:
                    prompt = renderer.render(row)
                    text, chat = prompt.text, None if prompt.messages is None else json.dumps(prompt.messages)
                except Exception as error:  # a template is user code: whatever it raises is that row's fault
                    faults[i] = RowFault.of(error, "template")
            texts.append(text)
            messages.append(chat)
        block = with_faults(block, faults)
        for name, values in ((TEXT, texts), (MESSAGES, messages)):
            block = block.append_column(name, pa.array(values, pa.string()))
        return block

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_renderer": None}


def read_ready(corpus: Corpus, units: Sequence[Span]) -> Iterator[tuple[Span, pa.Table]]:
    """The blocks of units of one file, indexed first where ids need that (once per file; who comes first does it)."""
    for number in {unit.input for unit in units}:
        if needs_index(corpus, number):
            index_occurrences(corpus, number)
    yield from read_units(corpus, units)
