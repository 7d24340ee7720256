"""A third party's distribution is found, listed, law-tested and run; a broken one fails only who asks for it.

The package in tests/plugin_package is built by its own backend and unpacked as an installer would: a wheel of pure
Python is installed by unzipping it. Plug-ins are scanned once per process, so tests look from another one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent / "plugin_package"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package installed, as on sys.path."""
    tmp = tmp_path_factory.mktemp("plugin")
    source = tmp / "source"
    for file in PACKAGE.rglob("*.*"):
        if file.suffix in (".py", ".toml"):
            target = source / file.relative_to(PACKAGE)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    build = f"from setuptools import build_meta; print(build_meta.build_wheel({str(tmp)!r}))"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp / "site")
    return tmp / "site"


def _add(site: Path, name: str, source: str, room: str = "samplers") -> None:
    """Install one more plug-in, by hand: a module and the metadata that an installer writes."""
    (site / f"{name}.py").write_text(textwrap.dedent(source))
    info = site / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[raydecode.{room}]\n{name} = {name}\n")


def _look(root: Path, site: Path, code: str) -> dict:
    """What `code` puts into `found`, in a process that has the folder on its path."""
    script = "import json\nfrom raydecode import conformance, registry\nfound = {}\n" + textwrap.dedent(code)
    env = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{root}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-c", script + "\nprint(json.dumps(found))"]
    done = subprocess.run(command, env=env, cwd=site, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_package_from_outside_is_a_method_like_ours(root, site):
    found = _look(
        root,
        site,
        """
        from raydecode.conformance.drive import drive
        from raydecode.config import parse_decoding
        from raydecode.engine.toy import ToyEngine
        from raydecode.request import Ids, Request

        within = registry.methods("samplers")["within"]
        found["card"] = [within.summary, within.origin, list(within.engines), within.schema()["properties"]["nats"]]
        found["names"] = sorted(registry.methods("samplers"))
        found["broken"] = dict(registry.broken("samplers"))
        found["laws"] = conformance.check(within)

        def texts(sampler):
            spec = parse_decoding({"max_tokens": 20, "seed": 4, "n": 6, "sampler": sampler})
            run = drive(ToyEngine(), [Request("r", "r", Ids((0, 1)), spec)])
            return [one.tokens for _, one in sorted(run.outcomes.items())]

        found["same as min_p"] = texts([{"name": "within", "nats": 2.0}]) == texts([{"name": "min_p", "p": 0.135335}])
        found["not plain"] = texts("within") != texts([])
        """,
    )
    summary, origin, engines, nats = found["card"]
    assert summary == "Keep tokens within some nats of the likeliest"
    assert (origin, engines) == ("raydecode_within.sampler", ["torch", "toy", "vllm"])
    assert nats == {
        "default": 3.0, "description": "distance in log-probability", "maximum": 100, "minimum": 0, "title": "Nats",
        "type": "number",
    }  # fmt: skip
    assert {"within", "top_p", "greedy"} <= set(found["names"])
    assert found["broken"] == {}
    assert "rows_do_not_see_each_other" in found["laws"]
    assert found["same as min_p"]
    assert found["not plain"]


BROKEN = "import a_module_that_is_not_there"
PRETENDER = """
    from raydecode import registry

    @registry.register("samplers", name="top_p")
    class Another:
        "Something else under a known name."
    """
COUNTING = """
    from raydecode import registry

    @registry.register("monitors")
    class Counting:
        "Count tokens."
    """


@pytest.fixture(scope="module")
def crowd(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What a process sees that has a broken plug-in, one with a name that is taken, and one for another room."""
    site = tmp_path_factory.mktemp("crowd")
    _add(site, "shattered", BROKEN)
    _add(site, "pretender", PRETENDER)
    _add(site, "counting_monitor", COUNTING, room="monitors")
    return _look(
        root,
        site,
        """
        from raydecode.errors import UserError

        for room in ("samplers", "monitors"):
            found[room] = {name: method.origin for name, method in registry.methods(room).items()}
        found["broken"] = dict(registry.broken("samplers"))
        try:
            registry.get("samplers", "shattered", "decoding.sampler")
        except UserError as error:
            found["error"] = str(error)
        """,
    )


def test_a_broken_plugin_fails_only_who_asks_for_it(crowd):
    assert "shattered" not in crowd["samplers"]
    assert {"top_p", "greedy"} <= set(crowd["samplers"])
    assert crowd["broken"]["shattered"] == "ModuleNotFoundError: No module named 'a_module_that_is_not_there'"
    assert crowd["error"].startswith("decoding.sampler: samplers/shattered failed to load: ModuleNotFoundError")
    assert "raydecode doctor" in crowd["error"]


def test_a_name_that_is_taken_stays_with_its_owner(crowd):
    assert crowd["samplers"]["top_p"] == "raydecode.samplers.top_p"
    assert "samplers/top_p is registered by raydecode.samplers.top_p already" in crowd["broken"]["pretender"]
    assert "rename the method in pretender" in crowd["broken"]["pretender"]


def test_every_room_takes_plugins(crowd):
    assert crowd["monitors"]["counting"] == "counting_monitor"
