"""Headless Chromium over its DevTools protocol: real key presses and pointer moves, as a person's are.

with Chromium(path, profile) as browser:
    page = browser.page("http://127.0.0.1:1234/")
    page.press("Tab")
    page.wait("document.activeElement.id === 'prompt'")
"""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any

from websockets.sync.client import connect

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-extensions", "--disable-dev-shm-usage",
    "--mute-audio", "--hide-scrollbars", "--remote-debugging-port=0", "--force-color-profile=srgb",
)  # fmt: skip
START_S, REPLY_S, WAIT_S = 60.0, 30.0, 20.0

KEYS = {
    "Tab": (9, ""), "Enter": (13, "\r"), "Escape": (27, ""), " ": (32, " "), "End": (35, ""), "Home": (36, ""),
    "ArrowLeft": (37, ""), "ArrowUp": (38, ""), "ArrowRight": (39, ""), "ArrowDown": (40, ""),
}  # fmt: skip
MODIFIERS = {"Alt": 1, "Ctrl": 2, "Meta": 4, "Shift": 8}


class Chromium:
    """One browser process. profile: an empty folder of its own."""

    def __init__(self, path: str, profile: Path) -> None:
        command = [path, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            address = self._address(profile / "DevToolsActivePort")
            self._held = contextlib.ExitStack()
            self._socket = self._held.enter_context(connect(address, max_size=None, open_timeout=REPLY_S))
        except BaseException:
            self.process.kill()
            raise
        self._next = 0
        self.events: dict[str, deque[dict[str, Any]]] = {}

    def _address(self, file: Path) -> str:
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            with contextlib.suppress(FileNotFoundError, ValueError):
                port, path = file.read_text().split("\n")[:2]
                return f"ws://127.0.0.1:{int(port)}{path}"
            if self.process.poll() is not None:
                raise RuntimeError(f"the browser ended with {self.process.returncode} before it could be reached")
            time.sleep(0.02)
        raise TimeoutError(f"the browser did not start within {START_S:.0f} s")

    def call(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        """Send a command; events that come before its answer are kept for their session."""
        self._next += 1
        message = {"id": self._next, "method": method, "params": params} | ({"sessionId": session} if session else {})
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv(timeout=REPLY_S))
            if answer.get("id") == self._next:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            if "method" in answer:
                self.events.setdefault(answer.get("sessionId", ""), deque()).append(answer)

    def page(self, url: str, *, width: int = 1280, height: int = 900, **media: str) -> Page:
        """A tab of its own: no storage or history of any other."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, context)
        for domain in ("Page", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        page.size(width, height)
        page.media(**media)
        if url != "about:blank":
            page.go(url)
        return page

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.call("Browser.close")
        with contextlib.suppress(Exception):
            self._held.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)

    def __enter__(self) -> Chromium:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Page:
    """One tab."""

    def __init__(self, browser: Chromium, session: str, context: str) -> None:
        self._browser, self._session, self._context = browser, session, context
        self.problems: list[str] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **params)

    def go(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait(f"location.href === {json.dumps(url)} || location.href.startsWith({json.dumps(url + '#')})")
        self.wait("document.readyState === 'complete'")

    def close(self) -> None:
        self._browser.call("Target.disposeBrowserContext", browserContextId=self._context)

    # ------------------------------------------------------------------ looking
    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page, promises awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        self._listen()
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise AssertionError(details.get("exception", {}).get("description") or details["text"])
        return answer["result"].get("value")

    def wait(self, expression: str, timeout_s: float = WAIT_S) -> Any:
        """Until the expression is true; its value."""
        until = time.monotonic() + timeout_s
        while True:
            plain = f"const v = {expression}; return v instanceof Node ? true : v"
            value = self.evaluate(f"(() => {{ try {{ {plain} }} catch {{ return null }} }})()")
            if value:
                return value
            if time.monotonic() > until:
                seen = self.evaluate("document.body.innerText.slice(0, 3000)")
                raise AssertionError(f"not within {timeout_s:.0f} s: {expression}\nproblems: {self.problems}\n{seen}")
            time.sleep(0.02)

    def text(self, selector: str) -> str:
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)})?.textContent ?? ''"))

    def _listen(self) -> None:
        """What the console said: errors, exceptions, refused loads."""
        events = self._browser.events.get(self._session, deque())
        while events:
            event = events.popleft()
            params = event["params"]
            match event["method"]:
                case "Runtime.exceptionThrown":
                    details = params["exceptionDetails"]
                    self.problems.append(details.get("exception", {}).get("description") or details["text"])
                case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                    self.problems.append(
                        " ".join(str(one.get("value", one.get("description"))) for one in params["args"])
                    )
                case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                    self.problems.append(params["entry"]["text"])

    def shot(self, path: Path, whole: bool = False) -> None:
        """A PNG of the window, or of the whole page."""
        params: dict[str, Any] = {"format": "png"}
        if whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            params |= {"captureBeyondViewport": True, "clip": {**size, "scale": 1}}
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", **params)["data"]))

    # ------------------------------------------------------------------ the window
    def size(self, width: int, height: int, *, phone: bool = False, scale: float = 1.0) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone
        )

    def media(self, **features: str) -> None:
        """`prefers_color_scheme="dark"`, ..."""
        listed = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", features=listed)

    # ------------------------------------------------------------------ acting
    def press(self, key: str, times: int = 1) -> None:
        """`Tab`, `Ctrl+Enter`, `Shift+Tab`, `a`."""
        *held, name = key.split("+") if len(key) > 1 else [key]
        code, text = KEYS.get(name, (ord(name[0].upper()), name))
        modifiers = sum(MODIFIERS[one] for one in held)
        params = {
            "key": name,
            "windowsVirtualKeyCode": code,
            "modifiers": modifiers,
            "code": name if name in KEYS else "",
        }
        for _ in range(times):
            typed = "" if held else text
            self.call("Input.dispatchKeyEvent", type="keyDown" if typed else "rawKeyDown", text=typed, **params)
            self.call("Input.dispatchKeyEvent", type="keyUp", **params)

    def type(self, text: str) -> None:
        """Into what has the focus."""
        self.call("Input.insertText", text=text)

    def tab_to(self, condition: str, most: int = 60) -> None:
        """Tab until the focused element (`e`) fulfils a condition."""
        for _ in range(most):
            self.press("Tab")
            if self.evaluate(f"((e) => {condition})(document.activeElement)"):
                return
        raise AssertionError(f"not reached with {most} tabs: {condition}")

    def point(self, selector: str) -> tuple[float, float]:
        """Move the pointer to the middle of an element's first box."""
        found = json.dumps(selector)
        self.wait(f"document.querySelector({found})")
        self.evaluate(f"document.querySelector({found}).scrollIntoView({{block: 'center'}})")
        box = self.evaluate(
            f"(([b]) => [b.x + b.width / 2, b.y + b.height / 2])([...document.querySelector({found}).getClientRects()])"
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])
        return box[0], box[1]

    def click(self, selector: str) -> None:
        x, y = self.point(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def drop(self, selector: str, file: Path) -> None:
        """Choose a file in an <input type=file>."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])
