"""`raydecode serve`: it says where it is, answers, and lets a stream end when it is told to stop."""

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from raydecode.config import HttpConfig
from raydecode.errors import UserError

pytestmark = pytest.mark.timeout(600)


@pytest.mark.slow
def test_it_serves_until_it_is_told_to_stop(root, tmp_path):
    (tmp_path / "serve.yaml").write_text(
        "models: [{name: toy, model: toy, engine: {name: toy, slots: 4, options: {step_s: 0.02}}}]\n"
    )
    command = [sys.executable, "-u", "-m", "raydecode.cli", "serve", str(tmp_path / "serve.yaml"), "--port", "0"]
    server = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        lines = []
        for line in server.stdout:
            lines.append(line)
            if found := re.match(r"(http://127\.0\.0\.1:\d+)/v1", line):
                break
        else:
            pytest.fail("".join(lines))
        assert any("toy engine" in line and "bitwise" in line for line in lines)
        body = {"model": "toy", "prompt": "ab", "max_tokens": 150, "stream": True, "decoding": {"ignore_eos": True}}
        asked = urllib.request.Request(
            f"{found[1]}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=120) as answer:
            first = answer.readline()
            server.send_signal(signal.SIGTERM)
            rest = answer.read()
        assert first.startswith(b"data: ")
        assert rest.endswith(b"data: [DONE]\n\n")
        server.stdout.read()
        assert server.wait(timeout=120) == 0
    finally:
        server.kill()
        server.stdout.close()
        server.wait()


def test_a_port_in_use_is_said():
    pytest.importorskip("uvicorn")
    from serve_app.front import address, listening

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError) as caught:
            listening(HttpConfig(port=port))
        assert (caught.value.field, caught.value.value) == ("http.port", port)
    with listening(HttpConfig(port=0)) as free:
        assert re.fullmatch(r"http://127\.0\.0\.1:[1-9]\d*", address(HttpConfig(port=0), free))
