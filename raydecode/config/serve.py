"""What `raydecode serve` reads: models and how they are reached. Same words and same errors as a job file.

    config = load_serve("serve.yaml", ["models.0.engine.slots=16"])

The file is either these sections, or Ray Serve's own config file with them as `args` of one application, so that
`raydecode serve`, `serve deploy` and a RayService take the same one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, PrivateAttr, ValidationError, ValidationInfo, field_validator, model_validator

from raydecode.config.decoding import DecodingConfig, Roster, named_drafters
from raydecode.config.fields import Count, Positive, Section, complaint, in_order, located, without_nulls
from raydecode.config.job import SHORT_FORMS, EngineConfig, ModelConfig
from raydecode.errors import UserError
from raydecode.request import Card, DecodingSpec, Json


class ScalingConfig(Section):
    """How many replicas of a model there are."""

    min: int = Field(default=1, ge=0)
    """least replicas; 0: none while nobody asks, the first request then waits for one to load"""
    max: Count = 1
    """most replicas"""
    target: Positive | None = None
    """requests that run or wait per replica, which more or fewer replicas are to reach; null: the engine's slots"""
    upscale_delay_s: float = Field(default=10.0, ge=0)
    """how long there must be more than that"""
    downscale_delay_s: float = Field(default=300.0, ge=0)
    """how long there must be fewer"""
    to_zero_delay_s: float | None = Field(default=None, ge=0)
    """how long nobody must have asked before the last one goes; null: downscale_delay_s"""
    drain_s: Positive = 60.0
    """what a replica that leaves has for its running requests; the rest then go on in another"""

    @model_validator(mode="after")
    def _ordered(self) -> ScalingConfig:
        in_order(self.min, self.max, "scaling")
        return self


class ReplicaConfig(Section):
    """What Ray sets aside for one replica: an engine in a process of its own."""

    num_cpus: float | None = Field(default=None, ge=0)
    """CPUs; null: 0 on a small machine, where Ray and the engines share, else the machine's divided by `scaling.max`"""
    num_gpus: float | None = Field(default=None, ge=0)
    """GPUs, fractions allowed; null: 1 where the cluster has GPUs, else 0"""


class ServedModelConfig(Section):
    """A model, and what its requests are decoded by unless they say otherwise."""

    name: str = ""
    """what requests call it; default: the last part of the model's source"""
    model: ModelConfig
    engine: EngineConfig = EngineConfig()
    decoding: DecodingConfig = DecodingConfig()
    scaling: ScalingConfig = ScalingConfig()
    actors: ReplicaConfig = ReplicaConfig()

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        value = {k: v for k, v in value.items() if v is not None}
        if not value.get("name"):
            model = value.get("model")
            source = model.get("source") if isinstance(model, dict) else model
            if isinstance(source, str):
                value["name"] = source.rstrip("/").rsplit("/", 1)[-1].removeprefix("pypi:").removesuffix(".gguf")
        return value

    @field_validator("model", "engine", mode="before")
    @classmethod
    def _short_form(cls, value: Any, info: ValidationInfo) -> Any:
        return {SHORT_FORMS[str(info.field_name)]: value} if isinstance(value, str) else value

    def to_json(self) -> dict[str, Json]:
        """Defaults filled in; `model_validate` reads it back."""
        return self.model_dump(mode="json")

    # ------------------------------------------------------------------ what `assemble` asks of a job
    @property
    def spec(self) -> DecodingSpec:
        """The specification of a request that says nothing."""
        return self.decoding.spec

    @property
    def roster(self) -> Roster:
        """What a request may use."""
        return Roster(own=self.spec.cards(), named=self.decoding.roster)

    @property
    def drafters(self) -> tuple[Card, ...]:
        return named_drafters(self.decoding)


class HttpConfig(Section):
    """Where the server listens."""

    host: str = "127.0.0.1"
    """an address of this machine; 0.0.0.0: all of them, which needs `keys`"""
    port: int = Field(default=8000, ge=0, le=65535)
    """0: a free one"""
    tls_certfile: str | None = None
    """certificate chain (PEM): HTTPS"""
    tls_keyfile: str | None = None
    """its private key (PEM)"""
    cors_origins: tuple[str, ...] = ()
    """origins whose pages may call; none unless listed"""
    anonymous: bool = False
    """others than this machine may call without a key"""
    playground: bool = True
    """the page at /"""
    replicas: Count = 1
    """processes that speak HTTP behind Ray Serve's proxies on a cluster; `raydecode serve` is one"""

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _origins(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _pair(self) -> HttpConfig:
        if (self.tls_certfile is None) != (self.tls_keyfile is None):
            missing = "tls_keyfile" if self.tls_keyfile is None else "tls_certfile"
            raise UserError("TLS needs certificate and key", field=f"http.{missing}", value=None)
        return self

    @property
    def loopback(self) -> bool:
        """Nobody outside this machine can reach it."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")


class ServeLimitsConfig(Section):
    """What a request may be, and how long it may take. Beyond: 400, 413, 429 or 504 at once."""

    queue: Count = 256
    """requests that wait per replica; beyond: 429 with Retry-After"""
    request_timeout_s: Positive = 600.0
    """a request's time from arrival to its last token"""
    start_timeout_s: Positive = 300.0
    """how long a request waits for a first or another replica"""
    body_bytes: Count = 1 << 20
    """size of a body; uploads have `file_bytes`"""
    file_bytes: Count = 200 << 20
    """size of an uploaded file"""
    n: Count = 16
    """samples of a request"""
    prompts: Count = 64
    """prompts of a completion request"""
    max_tokens: Count | None = None
    """most output tokens; null: what the model's context allows"""
    stop: Count = 16
    """stop strings"""
    stop_bytes: Count = 256
    """bytes of each"""
    logprobs: int = Field(default=20, ge=0, le=1000)
    """alternatives per token"""
    logit_bias: Count = 1024
    """entries"""
    schema_depth: Count = 32
    """nesting of a JSON schema"""
    schema_bytes: Count = 64 << 10
    """size of a JSON schema"""
    regex_length: Count = 4096
    """characters of a regular expression"""


class KeyConfig(Section):
    """Who may call. Keys are kept as SHA-256 only: `printf %s KEY | sha256sum`."""

    name: str = Field(min_length=1)
    """shown in logs and metrics"""
    sha256: str = Field(pattern=r"^[0-9a-fA-F]{64}$")
    """of the key"""
    requests_per_minute: Count | None = None
    """null: any number"""
    tokens_per_minute: Count | None = None
    """prompt and output together; null: any number"""
    tokens_per_day: Count | None = None
    """prompt and output together; null: any number"""


class BatchesConfig(Section):
    """/v1/files and /v1/batches."""

    path: str | None = None
    """a folder or object-store prefix for uploads and results; null: these routes answer that they are off"""
    keep_days: Positive = 30.0
    """how long files stay"""
    running: Count = 2
    """batches that run at once; others wait"""
    slots: Count = 64
    """lines of a batch that are asked of the engines at once; they take what others leave"""
    lines: Count = 50_000
    """most lines of a batch"""
    flush_s: Positive = 10.0
    """answers are committed at the latest after this long; what a killed server had not committed is run again"""
    keep_rows: bool = False
    """keep the rows and the commit log of ended batches, under rows/; raydecode verify and report read them"""


class LoggingConfig(Section):
    """What the server writes to its log."""

    prompts: bool = False
    """prompts and texts, too"""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """least severity"""
    format: Literal["json", "text"] = "json"
    """json: one object a line"""


class TracingConfig(Section):
    """OpenTelemetry traces; they need `pip install raydecode[trace]`."""

    endpoint: str | None = None
    """OTLP over HTTP, such as http://collector:4318/v1/traces; null: off"""
    share: float = Field(default=1.0, ge=0, le=1)
    """of the traces that begin here; those that a caller began are always continued as the caller decided"""


class ServeConfig(Section):
    """A server: models, where they are reached, by whom, and how much of everything."""

    models: tuple[ServedModelConfig, ...] = Field(min_length=1)
    """what is served; the first is the playground's choice"""
    http: HttpConfig = HttpConfig()
    limits: ServeLimitsConfig = ServeLimitsConfig()
    keys: tuple[KeyConfig, ...] = ()
    """none: only this machine may call, unless http.anonymous"""
    batches: BatchesConfig = BatchesConfig()
    logging: LoggingConfig = LoggingConfig()
    tracing: TracingConfig = TracingConfig()

    _lines: Mapping[str, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _empty_sections(cls, value: Any) -> Any:
        return without_nulls(value)

    @field_validator("models", mode="before")
    @classmethod
    def _models(cls, value: Any) -> Any:
        return tuple(_model(one, f"models[{i}]") for i, one in enumerate(value)) if isinstance(value, list) else value

    @field_validator("keys", mode="before")
    @classmethod
    def _keys(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _consistent(self) -> ServeConfig:
        for field, items in (("models", self.models), ("keys", self.keys)):
            names = [one.name for one in items]
            for i, name in enumerate(names):
                if name in names[:i]:
                    raise UserError("this name is taken", field=f"{field}[{i}].name", value=name)
        held: dict[str, str] = {}
        for i, model in enumerate(self.models):
            other = held.setdefault(deployment_name(model.name), model.name)
            if other != model.name:
                raise UserError(
                    f"its deployment on Ray Serve would have the name of that of '{other}', "
                    f"{deployment_name(other)}",
                    field=f"models[{i}].name", value=model.name,
                    hint="names differ in more than characters that are no letter, digit, '.', '_' or '-'",
                )  # fmt: skip
        if not (self.keys or self.http.loopback or self.http.anonymous):
            raise UserError(
                "a server that others can reach needs keys", field="http.host", value=self.http.host,
                nearest="127.0.0.1",
                hint="keys: [{name: me, sha256: ...}] (printf %s KEY | sha256sum), or http.anonymous: true",
            )  # fmt: skip
        return self

    def model_named(self, name: str) -> ServedModelConfig | None:
        """The model that requests call so."""
        return next((one for one in self.models if one.name == name), None)

    def to_json(self) -> dict[str, Json]:
        """The whole configuration, defaults filled in; `ServeConfig.model_validate` reads it back."""
        return self.model_dump(mode="json")

    def locate(self, error: UserError) -> UserError:
        """The error with the place of its field in the file."""
        return located(error, self._lines)


def deployment_name(model: str) -> str:
    """What Ray Serve, its logs and its metrics call the replicas of a model."""
    return "model-" + re.sub(r"[^A-Za-z0-9_.-]", "-", model)


def _model(value: Any, where: str) -> ServedModelConfig:
    """One model of the list, its complaints under its own place."""
    if isinstance(value, ServedModelConfig):
        return value
    if isinstance(value, str):
        value = {"model": value}
    try:
        return ServedModelConfig.model_validate(value)
    except ValidationError as error:
        raise complaint(error, ServedModelConfig, where) from None
    except UserError as error:
        field = f"{where}.{error.field}" if error.field else where
        raise type(error)(
            error.message, field=field, value=error.value, nearest=error.nearest, hint=error.hint
        ) from None
