"""The composition root: a job becomes a checked, live engine. The only place that knows engines by name.

choose(job)          which engine, and why; raises Refused before any weights load
build_engine(job)    that engine, with the model found, checked and loaded
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raydecode.errors import Refused

if TYPE_CHECKING:
    from raydecode.config import JobConfig
    from raydecode.contracts import Engine
    from raydecode.request import DecodingSpec

TOY = "toy"
"""The model source that names the toy engine's own table."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which engine runs the job. dtype is resolved, so that all actors and every restart use the same one."""

    name: str
    dtype: str
    why: str


def choose(job: JobConfig) -> Choice:
    """The engine of a job. `auto` takes vLLM where it is installed and can host everything asked, else torch.

    Rosters count: what a row may ask for must be possible too. Raises Refused, naming both sides and what would work.
    """
    specs = [job.spec, *_roster_specs(job)]
    if job.engine.name != "auto":
        _raise_first(job.engine.name, specs)
        return Choice(job.engine.name, _dtype(job, job.engine.name), "asked for")
    if job.model.source == TOY:
        _raise_first(TOY, specs)
        return Choice(TOY, "float32", "the toy model has an engine of its own")
    from raydecode.engine.vllm import available

    missing = available()
    if missing:
        _raise_first("torch", specs)
        return Choice("torch", _dtype(job, "torch"), f"vLLM cannot run here: {missing}")
    refused = next((r for r in (_refusal("vllm", spec) for spec in specs) if r), None)
    if refused:
        _raise_first("torch", specs)
        return Choice("torch", _dtype(job, "torch"), f"vLLM refuses: {refused.message}")
    return Choice("vllm", _dtype(job, "vllm"), "vLLM hosts all that is asked")


def build_engine(job: JobConfig, *, stream: bool = False) -> Engine:
    """Choose, find, check and load. Minutes for a large model. Raises UserError, Refused, ModelError."""
    choice = choose(job)
    engine = job.engine
    if choice.name == TOY:
        from raydecode.engine.toy import ToyEngine

        size: dict[str, Any] = {"context": engine.max_length} if engine.max_length else {}
        return ToyEngine(slots=engine.slots, stream=stream, **size, **engine.options)
    from raydecode import models

    model = job.model
    folder = models.locate(model.source, revision=model.revision, trust_remote_code=model.trust_remote_code)
    common: dict[str, Any] = {
        "dtype": choice.dtype, "slots": engine.slots, "max_length": engine.max_length, "threads": engine.threads,
        "options": engine.options, "stream": stream,
    }  # fmt: skip
    if model.trust_remote_code:
        common["options"] = {**engine.options, "trust_remote_code": True}
    if choice.name == "vllm":
        from raydecode.engine.vllm import VllmEngine

        return VllmEngine(folder, **common)
    from raydecode.engine.torch import TorchEngine

    return TorchEngine(folder, **common)


def _roster_specs(job: JobConfig) -> list[DecodingSpec]:
    """The job's spec with one roster card at a time: each must be possible beside the rest."""
    named = job.roster.named or {}
    field = {"samplers": "sampler", "drafters": "drafter", "searches": "search"}
    specs = []
    for room, cards in named.items():
        for card in cards:
            name = field.get(room, room)
            change: dict[str, Any] = {name: card if name in ("drafter", "search") else (card,)}
            specs.append(dataclasses.replace(job.spec, **change))
    return specs


def _raise_first(engine: str, specs: list[DecodingSpec]) -> None:
    for spec in specs:
        refused = _refusal(engine, spec)
        if refused:
            raise refused


def _refusal(engine: str, spec: DecodingSpec) -> Refused | None:
    """The engine's own answer where it has more to say than its name on the card, without building it."""
    if engine == "vllm":
        from raydecode.engine.vllm import refuse

        return refuse(spec)
    from raydecode.engine.loop import refuse as refuse_loop

    return refuse_loop(engine, spec)


def _dtype(job: JobConfig, engine: str) -> str:
    if engine == TOY:
        return "float32"
    from raydecode.engine.torch import resolve_dtype

    return resolve_dtype(job.engine.dtype)
