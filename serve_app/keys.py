"""Who may ask, and how much: API keys as SHA-256 in the configuration, a rate and a daily quota for each.

A key is 256 random bits, so a plain hash of it cannot be searched; it is compared with every configured hash in
constant time. A rate refills evenly, in a bucket as deep as one minute. Tokens are prompt and output together and are
counted when an answer ends, so that requests in flight may pass a limit by what they are worth: a bucket of tokens then
holds less than none, and the key waits for longer. All are counts of this process: several ingress replicas count each
for itself.

Without configured keys only this machine is served: a peer on loopback that names loopback as the host, so that no web
page can reach it under a name of its own, and without a header that a proxy adds. A proxy on this machine which adds
none cannot be told from a local client: behind a proxy there must be keys.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from raydecode.config import KeyConfig
from serve_app.failures import AUTHENTICATION, RATE, ApiError

DAY_S = 86_400
PREFIX = "rd-"
PROXIES, FORWARDED = ("via", "forwarded", "x-real-ip"), "x-forwarded-"
"""Headers that proxies add."""


def new_key() -> str:
    """A fresh key. It is shown once; the configuration holds its `hashed`."""
    return PREFIX + secrets.token_urlsafe(32)


def hashed(key: str) -> str:
    """What the configuration holds: SHA-256, hexadecimal."""
    return hashlib.sha256(key.encode()).hexdigest()


class Bucket:
    """So many per minute, refilled evenly. room: what it held at `at`, in seconds of some clock"""

    def __init__(self, rate: int, now: float) -> None:
        self.rate, self.room, self.at = rate, float(rate), now

    def filled(self, now: float) -> float:
        """What it holds."""
        self.room = min(float(self.rate), self.room + max(0.0, now - self.at) * self.rate / 60)
        self.at = now
        return self.room

    def wait_s(self) -> float:
        """Until it holds one."""
        return (1 - self.room) * 60 / self.rate


class Account:
    """What a key may use, and has used.

    requests, minute: buckets of requests (monotonic clock) and of tokens (Unix time); None: any number
    tokens: used on `day` (UTC)
    """

    def __init__(self, key: KeyConfig | None, now: float = 0.0, unix: float = 0.0) -> None:
        self.name = key.name if key else ""
        self.requests = Bucket(key.requests_per_minute, now) if key and key.requests_per_minute else None
        self.minute = Bucket(key.tokens_per_minute, unix) if key and key.tokens_per_minute else None
        self.quota = key.tokens_per_day if key else None
        self.day = self.tokens = 0

    @property
    def counts(self) -> bool:
        """It makes a difference how many tokens an answer has."""
        return self.quota is not None or self.minute is not None

    def admit(self, now: float, unix: float) -> dict[str, str]:
        """Take one request, or raise ApiError(429). Returns the headers that tell what is left."""
        headers: dict[str, str] = {}
        tokens: list[tuple[int, int]] = []  # left, limit
        if self.quota is not None:
            left = self.quota - self._today(unix)
            if left <= 0:
                wait = DAY_S - unix % DAY_S
                raise self._wait(f"has used its {self.quota:,} tokens of today (UTC)", wait, "insufficient_quota")
            tokens.append((left, self.quota))
        if self.minute is not None:
            room = self.minute.filled(unix)
            if room < 1:
                said = f"may use {self.minute.rate:,} tokens per minute"
                raise self._wait(said, self.minute.wait_s(), "rate_limit_exceeded")
            tokens.append((int(room), self.minute.rate))
        if self.requests is not None:
            if self.requests.filled(now) < 1:
                said = f"may ask {self.requests.rate:,} times per minute"
                raise self._wait(said, self.requests.wait_s(), "rate_limit_exceeded")
            self.requests.room -= 1
            headers["x-ratelimit-limit-requests"] = str(self.requests.rate)
            headers["x-ratelimit-remaining-requests"] = str(int(self.requests.room))
        if tokens:  # the limit that is nearer
            left, limit = min(tokens)
            headers |= {"x-ratelimit-limit-tokens": str(limit), "x-ratelimit-remaining-tokens": str(left)}
        return headers

    def used_up(self, unix: float) -> bool:
        """The tokens of the day or of the minute are gone: a batch waits for the next."""
        day = self.quota is not None and self._today(unix) >= self.quota
        return day or (self.minute is not None and self.minute.filled(unix) < 1)

    def spend(self, tokens: int, unix: float) -> None:
        """Prompt and output tokens of an answer that ended."""
        self.tokens = self._today(unix) + tokens
        if self.minute is not None:
            self.minute.filled(unix)
            self.minute.room -= tokens

    def _today(self, unix: float) -> int:
        day = int(unix) // DAY_S
        if day != self.day:
            self.day, self.tokens = day, 0
        return self.tokens

    def _wait(self, what: str, wait_s: float, code: str) -> ApiError:
        wait = max(1, math.ceil(wait_s))
        return ApiError(
            429, f"key '{self.name}' {what}; ask again in {wait} s", type=RATE, code=code,
            headers={"Retry-After": str(wait)},
        )  # fmt: skip


@dataclass
class Keys:
    """The configured keys and their accounts.

    anonymous: without keys others than this machine may ask, too
    """

    configured: Sequence[KeyConfig] = ()
    anonymous: bool = False
    clock: Callable[[], float] = time.monotonic
    unix: Callable[[], float] = time.time
    accounts: dict[str, Account] = field(default_factory=dict)
    nobody: Account = field(default_factory=lambda: Account(None))

    def __post_init__(self) -> None:
        self.accounts = {one.sha256.lower(): Account(one, self.clock(), self.unix()) for one in self.configured}

    def admit(self, headers: Mapping[str, str], peer: str | None) -> tuple[Account, dict[str, str]]:
        """The account that a request belongs to, one request taken from it, and headers that say what is left."""
        account = self.who(headers, peer)
        return account, account.admit(self.clock(), self.unix())

    def spend(self, account: Account, tokens: int) -> None:
        account.spend(tokens, self.unix())

    def who(self, headers: Mapping[str, str], peer: str | None) -> Account:
        """The account of a request, or ApiError(401)."""
        if not self.accounts:
            if self.anonymous or _local(headers, peer):
                return self.nobody
            raise ApiError(
                401, "this server has no API keys, so it serves its own machine only; `serve --new-key` makes one",
                type=AUTHENTICATION, code="no_keys",
            )  # fmt: skip
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise _unknown("an API key is needed: `Authorization: Bearer <key>`", "missing_api_key")
        given, found = hashed(key.strip()), None
        for known, account in self.accounts.items():  # all of them, always: the time says nothing
            if hmac.compare_digest(known, given):
                found = account
        if found is None:
            raise _unknown("the API key is not one of this server's", "invalid_api_key")
        return found


def _unknown(message: str, code: str) -> ApiError:
    return ApiError(401, message, type=AUTHENTICATION, code=code, headers={"WWW-Authenticate": "Bearer"})


def _local(headers: Mapping[str, str], peer: str | None) -> bool:
    """From this machine, under a name that only it has, and not through a proxy that says so."""
    if peer is None or any(name in PROXIES or name.startswith(FORWARDED) for name in map(str.lower, headers)):
        return False
    host = headers.get("host", "")
    name = host[1:].partition("]")[0] if host.startswith("[") else host.rpartition(":")[0] or host
    return _loopback(peer) and (name == "localhost" or _loopback(name))


def _loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
