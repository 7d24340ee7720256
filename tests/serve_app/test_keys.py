"""Keys: hashed, compared whole, counted."""

from __future__ import annotations

from typing import Any

import pytest

from raydecode.config import KeyConfig
from serve_app.failures import ApiError
from serve_app.keys import Keys, hashed, new_key

LOCAL = {"host": "127.0.0.1:8000"}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def keys(clock: Clock, **limits: Any) -> tuple[Keys, dict[str, str]]:
    key = new_key()
    configured = [KeyConfig(name="other", sha256=hashed(new_key())), KeyConfig(name="me", sha256=hashed(key), **limits)]
    return Keys(configured, clock=clock, unix=clock), {"authorization": f"Bearer {key}"}


def refused(one: Keys, headers: dict[str, str], peer: str | None = "127.0.0.1") -> ApiError:
    with pytest.raises(ApiError) as caught:
        one.admit(headers, peer)
    return caught.value


def test_a_key_is_known_by_its_hash() -> None:
    one, header = keys(Clock())
    assert one.admit(header, "10.1.2.3")[0].name == "me"
    for headers in ({}, {"authorization": "Bearer rd-no"}, {"authorization": "Basic x"}, {"authorization": "Bearer "}):
        error = refused(one, headers)
        assert error.status == 401
        assert error.headers["WWW-Authenticate"] == "Bearer"
    assert len({new_key() for _ in range(20)}) == 20


def test_without_keys_this_machine_alone_is_served() -> None:
    one = Keys()
    for host in ("localhost:80", "127.0.0.1", "[::1]:8000"):
        assert one.admit({"host": host}, "127.0.0.1")[0].name == ""
    assert refused(one, LOCAL, "10.0.0.7").code == "no_keys"
    assert refused(one, {"host": "evil.example:8000"}).status == 401  # a name that was bent to this address
    for proxied in ("x-forwarded-for", "X-Forwarded-Proto", "forwarded", "via", "x-real-ip"):
        assert refused(one, {**LOCAL, proxied: "8.8.8.8"}).status == 401
    assert refused(one, LOCAL, None).status == 401
    assert Keys(anonymous=True).admit({}, "10.0.0.7")


def test_a_rate_refills_evenly() -> None:
    clock = Clock()
    one, header = keys(clock, requests_per_minute=2)
    left = [one.admit(header, None)[1]["x-ratelimit-remaining-requests"] for _ in range(2)]
    assert left == ["1", "0"]
    error = refused(one, header)
    assert (error.status, error.code, error.headers["Retry-After"]) == (429, "rate_limit_exceeded", "30")
    clock.now += 30
    one.admit(header, None)
    assert refused(one, header).status == 429


def test_tokens_count_by_the_day() -> None:
    clock = Clock()
    one, header = keys(clock, tokens_per_day=100)
    account, left = one.admit(header, None)
    assert left["x-ratelimit-remaining-tokens"] == "100"
    one.spend(account, 90)
    assert one.admit(header, None)[1]["x-ratelimit-remaining-tokens"] == "10"
    one.spend(account, 30)
    error = refused(one, header)
    assert error.code == "insufficient_quota"
    assert error.headers["Retry-After"] == str(86_400 - 1000)
    clock.now += 86_400
    one.admit(header, None)


def test_tokens_count_by_the_minute() -> None:
    clock = Clock()
    one, header = keys(clock, tokens_per_minute=60, tokens_per_day=1000)
    account, left = one.admit(header, None)
    assert (left["x-ratelimit-limit-tokens"], left["x-ratelimit-remaining-tokens"]) == ("60", "60")
    one.spend(account, 90)
    assert account.used_up(clock.now)
    error = refused(one, header)
    assert (error.status, error.code, error.headers["Retry-After"]) == (429, "rate_limit_exceeded", "31")
    clock.now += 31
    assert one.admit(header, None)[1]["x-ratelimit-remaining-tokens"] == "1"
    assert not account.used_up(clock.now)


def test_the_command_line_makes_a_key() -> None:
    from typer.testing import CliRunner

    from raydecode.cli import app

    said = CliRunner().invoke(app, ["serve", "--new-key"])
    assert said.exit_code == 0, said.output
    key = next(word for word in said.output.split() if word.startswith("rd-"))
    assert f"sha256: {hashed(key)}" in said.output
