"""Chromium for the tests of the playground: `python infra/browser.py` finds it or installs Debian's. Standard library.

The tests take the first of $CHROMIUM, chromium, chromium-browser, google-chrome. Where none is there, and this is
Debian (or Ubuntu) and root, the package `chromium` is installed. Elsewhere a line says what to do, the exit code is 0,
and the tests in the browser are skipped with that reason: a missing browser is no reason not to run the others.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PACKAGES = ("chromium", "fonts-dejavu-core")
"""A font beside it: Debian's chromium brings none, and without one every page is empty boxes."""
PATIENCE_S = 600


def find() -> str | None:
    """The browser's path. $CHROMIUM wins, and is not guessed around when it is wrong."""
    named = os.environ.get("CHROMIUM")
    if named:
        return shutil.which(named)
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def missing() -> str:
    """Why there is none, and what to do."""
    named = os.environ.get("CHROMIUM")
    if named:
        return f"no browser at $CHROMIUM = {named}; next: correct it, or unset it"
    return (
        f"no browser: none of {', '.join(NAMES)} on PATH; next: apt-get install chromium (as root), "
        "or set CHROMIUM to one that speaks the DevTools protocol"
    )


def install() -> str | None:
    """Install Debian's; the path, or None where that cannot be done."""
    apt = shutil.which("apt-get")
    if os.environ.get("CHROMIUM") or apt is None or os.geteuid() != 0:
        return None
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    say("installing Debian's chromium (about 100 MB, once per machine)")
    command = [apt, "install", "--yes", "--no-install-recommends", "-qq", *PACKAGES]
    for before in ([], [apt, "update", "-qq"]):  # the lists may be fresh already
        if before:
            subprocess.run(before, env=env, stdout=subprocess.DEVNULL, timeout=PATIENCE_S, check=False)
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        if done.returncode == 0:
            return find()
    say(f"apt-get failed: {' '.join(done.stderr.strip().splitlines()[-2:])}")
    return None


def say(text: str) -> None:
    print(f"browser: {text}", flush=True)


def main() -> int:
    try:
        found = find() or install()
    except (OSError, subprocess.TimeoutExpired) as error:
        say(f"not installed: {error}")
        found = None
    if found is None:
        say(f"{missing()}. Tests in a browser are skipped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
