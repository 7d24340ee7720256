"""Job files: strict, frozen models; errors that name field, value, nearest valid name and line.

    job = load_job("job.yaml", ["decoding.sampler=greedy"])
    job.decoding.spec                                    # the DecodingSpec of every row
    parse_decoding({"seed": 8}, base=job.decoding.spec)  # of a row with a `decoding` column
    job.roster.check(spec)                               # may a row use it?
    job.identity()                                       # what the texts depend on

The section names are fixed (docs/architecture.md, section 3); fields grow. This room may import the hall and the
registry, nothing else: a job is parsed and refused before torch's models, Ray or vLLM are imported.
"""

from raydecode.config.decoding import DecodingConfig, Roster, decoding_json, parse_decoding
from raydecode.config.job import (
    ActorsConfig,
    EngineConfig,
    InputConfig,
    JobConfig,
    LimitsConfig,
    ModelConfig,
    OutputConfig,
    PriceConfig,
    PromptConfig,
)
from raydecode.config.load import check_serve, load_job, load_serve, parse_job, parse_serve
from raydecode.config.serve import (
    BatchesConfig,
    HttpConfig,
    KeyConfig,
    LoggingConfig,
    ReplicaConfig,
    ScalingConfig,
    ServeConfig,
    ServedModelConfig,
    ServeLimitsConfig,
    TracingConfig,
    deployment_name,
)

__all__ = [
    "ActorsConfig",
    "BatchesConfig",
    "DecodingConfig",
    "EngineConfig",
    "HttpConfig",
    "InputConfig",
    "JobConfig",
    "KeyConfig",
    "LimitsConfig",
    "LoggingConfig",
    "ModelConfig",
    "OutputConfig",
    "PriceConfig",
    "PromptConfig",
    "ReplicaConfig",
    "Roster",
    "ScalingConfig",
    "ServeConfig",
    "ServeLimitsConfig",
    "ServedModelConfig",
    "TracingConfig",
    "check_serve",
    "decoding_json",
    "deployment_name",
    "load_job",
    "load_serve",
    "parse_decoding",
    "parse_job",
    "parse_serve",
]
