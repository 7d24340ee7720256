"""The composition root: a job becomes a checked, live engine. The only place that knows engines by name.

choose(job)          which engine, and why; raises Refused before any weights load
build_engine(job)    that engine, with the model found, checked and loaded
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from raydecode import registry
from raydecode.errors import Refused, UserError
from raydecode.request import FIELDS, SINGLE, Card

if TYPE_CHECKING:
    from raydecode.config import EngineConfig, ModelConfig, Roster
    from raydecode.contracts import Engine
    from raydecode.request import DecodingSpec

TOY = "toy"
"""The model source that names the toy engine's own table."""

DRAFTER = "decoding.drafter"


class Reserved(Protocol):
    """What Ray sets aside for an engine."""

    @property
    def num_gpus(self) -> float | None: ...


class Hosting(Protocol):
    """What an engine is built from: a job, or a model of a server."""

    @property
    def model(self) -> ModelConfig: ...

    @property
    def engine(self) -> EngineConfig: ...

    @property
    def actors(self) -> Reserved: ...

    @property
    def spec(self) -> DecodingSpec: ...

    @property
    def roster(self) -> Roster: ...

    @property
    def drafters(self) -> tuple[Card, ...]: ...


@dataclass(frozen=True, slots=True)
class Choice:
    """Which engine runs the job. dtype is resolved, so that all actors and every restart use the same one."""

    name: str
    dtype: str
    why: str


def choose(job: Hosting) -> Choice:
    """The engine of a job. `auto` takes vLLM where it is installed and can host everything asked, else torch; on a
    processor where the torch engine's own kernels serve it takes torch, which is faster there.

    A roster that the job names counts: what its rows may ask for must be possible too. Raises Refused, naming both
    sides and what would work.
    """
    if "trust_remote_code" in job.engine.options:  # code that comes with the model, like the model itself
        raise UserError(
            "whether a model's own code is run is said with the model", field="engine.options.trust_remote_code",
            value=job.engine.options["trust_remote_code"], hint="model: {source: ..., trust_remote_code: true}",
        )  # fmt: skip
    if job.engine.name != "auto":
        _raise(_refused(job.engine.name, job) or _family(job.engine.name, job))
        return Choice(job.engine.name, _dtype(job, job.engine.name), "asked for")
    if job.model.source == TOY:
        _raise(_refused(TOY, job))
        return Choice(TOY, "float32", "the toy model has an engine of its own")
    from raydecode.engine.vllm import available

    missing = available()
    refused = None if missing else _drafted(job) or _refused("vllm", job) or _family("vllm", job)
    if missing or refused:
        _raise(_refused("torch", job))
        why = f"vLLM refuses: {refused.message}" if refused else f"vLLM cannot run here: {missing}"
        return Choice("torch", _dtype(job, "torch"), why)
    if _native(job) and not _refused("torch", job):
        return Choice("torch", _dtype(job, "torch"), "its own kernels are the faster ones on this processor")
    return Choice("vllm", _dtype(job, "vllm"), "vLLM hosts all that is asked")


def notes(job: Hosting) -> list[str]:
    """Choices that were made for the user, each with its reason; what `drafter: auto` chose, the report says."""
    if not registry.chooses(job.spec.drafter) or choose(job).name != "vllm":
        return []
    return ["decoding.drafter: auto means none on vLLM, where nothing has measured whether a drafter pays"]


def build_engine(job: Hosting, *, stream: bool = False) -> Engine:
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
        _raise(_family("vllm", job))  # now that the model is here, whatever `choose` could see
        from raydecode.engine.vllm import DRAFTS, VllmEngine

        return VllmEngine(folder, drafts=DRAFTS if job.drafters else 0, **common)
    from raydecode.engine.torch import TorchEngine

    try:
        return TorchEngine(folder, **common, lanes=draft_models(job))
    except UserError as error:  # the engine knows its draft models, not who names them
        where = _draft_sources(job).get(str(error.value))
        if error.field != f"{DRAFTER}.model" or where is None:
            raise
        raise error.moved(error.field, where) from error


def draft_models(job: Hosting) -> dict[str, Path]:
    """source -> folder of every further model that drafters of the job or its roster draft with, fetched if need be.

    Raises UserError for one that cannot be had, naming the card that asks for it.
    """
    from raydecode import models

    found: dict[str, Path] = {}
    for source, field in _draft_sources(job).items():
        try:
            found[source] = models.locate(source, trust_remote_code=job.model.trust_remote_code)
        except models.ModelError as error:
            raise UserError(
                f"the draft model cannot be had: {error.message}", field=field, value=source, nearest=error.nearest,
                hint=error.hint,
            ) from error  # fmt: skip
    return found


def _draft_sources(job: Hosting) -> dict[str, str]:
    """source -> field that names it, of every further model to draft with."""
    from raydecode.engine.inside import needs_of

    named = (job.roster.named or {}).get("drafters", ())
    cards = [(DRAFTER, card) for card in job.spec.cards()["drafters"]]
    cards += [(f"decoding.roster.drafters[{i}]", card) for i, card in enumerate(named)]
    cards += [(f"{field}.among[{i}]", arm) for field, card in cards for i, arm in enumerate(registry.among(card))]
    found: dict[str, str] = {}
    for field, card in cards:
        method = registry.methods("drafters").get(card.name)
        if method is not None and method.loads:
            lanes = needs_of(method.factory, method.parse(card, field), ()).lanes
            found |= {source: f"{field}.model" for source in lanes if source != "self" and source not in found}
    return found


def _refused(engine: str, job: Hosting) -> Refused | None:
    """The first thing that `engine` cannot host: of the job's own spec, then of the roster that it names."""
    roster = [(room, card) for room, cards in (job.roster.named or {}).items() for card in cards]
    answers = itertools.chain(
        (_refusal(engine, job, job.spec),), (_roster_refusal(engine, job, *one) for one in roster)
    )
    return next((refused for refused in answers if refused), None)


def _drafted(job: Hosting) -> Refused | None:
    """Why `auto` does not take vLLM for a job with drafters, which vLLM hosts when it is asked for by name."""
    named = job.drafters
    if not named:
        return None
    return Refused(
        f"nothing measured whether drafter '{named[0].name}' pays on vLLM", field=DRAFTER, value=named[0].name,
        hint="engine.name=vllm takes it",
    )  # fmt: skip


def _family(engine: str, job: Hosting) -> Refused | None:
    """A model that `engine` cannot run, as far as its files are here: nothing is fetched to find out."""
    source = job.model.source
    if engine != "vllm" or source.endswith(".gguf"):  # gguf files hold decoders
        return None
    from raydecode import models
    from raydecode.models.card import read_json

    try:
        folder = models.locate(source, revision=job.model.revision, offline=True)
        config = read_json(folder / "config.json", folder)
    except models.ModelError:
        return None
    if not config.get("is_encoder_decoder"):
        return None
    return Refused(
        f"the vllm engine runs decoders only, and {config.get('model_type')} is an encoder-decoder", field="model",
        value=source, hint="engine.name=torch runs T5, BART and Marian",
    )  # fmt: skip


def _roster_refusal(engine: str, job: Hosting, room: str, card: Card) -> Refused | None:
    """The job's spec with a roster card in place of what it has there. A bare name stands for any options of its
    method, so where some are required there is only the name to ask about."""
    method, field = registry.get(room, card.name, f"decoding.roster.{room}"), FIELDS[room]
    if not card.options and any(option.is_required() for option in method.options.model_fields.values()):
        if engine in method.engines:
            return None
        return Refused(
            f"the {engine} engine does not host {room}/{card.name}", field=f"decoding.roster.{room}", value=card.name,
            hint=f"engines that do: {', '.join(method.engines)}",
        )  # fmt: skip
    change: dict[str, Any] = {field: card if field in SINGLE else (card,)}
    return _refusal(engine, job, dataclasses.replace(job.spec, **change))


def _raise(refused: Refused | None) -> None:
    if refused:
        raise refused


def _refusal(engine: str, job: Hosting, spec: DecodingSpec) -> Refused | None:
    """The engine's own answer where it has more to say than its name on the card, without building it."""
    if engine == "vllm":
        from raydecode.engine.vllm import refuse

        return refuse(spec, job.engine.options)
    from raydecode.engine.cards import refuse as refuse_loop

    return refuse_loop(engine, spec)


def _native(job: Hosting) -> bool:
    """Whether the torch engine would compute with kernels of its own: AVX2, float32 the fast dtype, a compiler, no GPU.

    Measured on an AVX2 processor (SmolLM2-135M, benchmarks/engine.py): 3.4 times vLLM's rate at one row, 1.5 at 32.
    Other processors are not measured and stay with vLLM; so do jobs that name an option that only vLLM has, and
    clusters, whose workers may have GPUs, unless the job says that it takes none.
    """
    import torch

    from raydecode.engine.torch.native import find_compiler
    from raydecode.engine.torch.options import OPTIONS

    options = job.engine.options
    gpus = job.actors.num_gpus
    if gpus or torch.cuda.is_available() or (gpus is None and os.environ.get("RAY_ADDRESS")):
        return False
    if not set(options) <= set(OPTIONS) or options.get("compile", "auto") is False:
        return False
    measured = torch.backends.cpu.get_cpu_capability() == "AVX2"
    return measured and _dtype(job, "torch") == "float32" and find_compiler() is not None


def _dtype(job: Hosting, engine: str) -> str:
    if engine == TOY:
        return "float32"
    import torch

    from raydecode.engine.dtype import fast_dtype

    return fast_dtype(job.engine.dtype, gpu=engine == "vllm" and torch.cuda.is_available())
