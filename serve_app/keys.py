"""Who may ask, and how much: API keys as SHA-256 in the configuration, a rate and a daily quota for each.

A key is 256 random bits, so a plain hash of it cannot be searched; it is compared with every configured hash in
constant time. A rate refills evenly, in a bucket as deep as one minute. Tokens are prompt and output together and are
counted when an answer ends, so that requests in flight may pass a quota by what they are worth. Both are counts of this
process: several ingress replicas count each for itself.

Without configured keys only this machine is served: a peer on loopback that names loopback as the host, so that no web
page can reach it under a name of its own, and that was not forwarded by a proxy.
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


def new_key() -> str:
    """A fresh key. It is shown once; the configuration holds its `hashed`."""
    return PREFIX + secrets.token_urlsafe(32)


def hashed(key: str) -> str:
    """What the configuration holds: SHA-256, hexadecimal."""
    return hashlib.sha256(key.encode()).hexdigest()


class Account:
    """What a key may use, and has used.

    room:   requests left in the bucket at `at`
    tokens: used on `day` (UTC)
    """

    def __init__(self, key: KeyConfig | None, now: float = 0.0) -> None:
        self.name = key.name if key else ""
        self.rate = key.requests_per_minute if key else None
        self.quota = key.tokens_per_day if key else None
        self.room, self.at = float(self.rate or 0), now
        self.day = self.tokens = 0

    def admit(self, now: float, unix: float) -> dict[str, str]:
        """Take one request, or raise ApiError(429). Returns the headers that tell what is left."""
        headers: dict[str, str] = {}
        if self.quota is not None:
            left = self.quota - self._today(unix)
            if left <= 0:
                wait = DAY_S - unix % DAY_S
                raise self._wait(f"has used its {self.quota:,} tokens of today (UTC)", wait, "insufficient_quota")
            headers |= {"x-ratelimit-limit-tokens": str(self.quota), "x-ratelimit-remaining-tokens": str(left)}
        if self.rate is not None:
            self.room = min(float(self.rate), self.room + (now - self.at) * self.rate / 60)
            self.at = now
            if self.room < 1:
                wait = (1 - self.room) * 60 / self.rate
                raise self._wait(f"may ask {self.rate:,} times per minute", wait, "rate_limit_exceeded")
            self.room -= 1
            headers["x-ratelimit-limit-requests"] = str(self.rate)
            headers["x-ratelimit-remaining-requests"] = str(int(self.room))
        return headers

    def used_up(self, unix: float) -> bool:
        """The tokens of the day are gone: a batch waits for the next."""
        return self.quota is not None and self._today(unix) >= self.quota

    def spend(self, tokens: int, unix: float) -> None:
        """Prompt and output tokens of an answer that ended."""
        self.tokens = self._today(unix) + tokens

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
        self.accounts = {one.sha256.lower(): Account(one, self.clock()) for one in self.configured}

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
    """From this machine, and under a name that only it has."""
    if "x-forwarded-for" in headers or "forwarded" in headers:
        return False
    host = headers.get("host", "")
    name = host[1:].partition("]")[0] if host.startswith("[") else host.rpartition(":")[0] or host
    return (peer is None or _loopback(peer)) and (name == "localhost" or _loopback(name))


def _loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
