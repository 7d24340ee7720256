"""From a row's columns to its prompt: Jinja in a sandbox, or a messages column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prompt:
    """Either `text` (already complete) or `messages` (for the model's chat template), never both."""

    text: str | None = None
    messages: tuple[Mapping[str, object], ...] | None = None


class Renderer:
    """`Renderer(prompt_section, columns)`: section keys template | messages | file, system, chat.
    Unknown columns are refused here with the nearest name; `render` raises RowError(stage="template")."""

    needs: tuple[str, ...]

    def __init__(self, prompt: Mapping[str, object], columns: Sequence[str]) -> None: ...
    def render(self, row: Mapping[str, object]) -> Prompt: ...
