"""A real Chromium without a window, spoken to over a pipe in its DevTools protocol.

https://chromedevtools.github.io/devtools-protocol/ has the methods and events.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")

LIMIT_S = 60

FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-first-run",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
)

KEYS = {
    "Tab": ("Tab", 9, ""),
    "Enter": ("Enter", 13, "\r"),
    "Escape": ("Escape", 27, ""),
    "Space": (" ", 32, " "),
    "ArrowDown": ("ArrowDown", 40, ""),
}
"""Of each key its value, code and text."""

SHIFT = 8


def chromium() -> str | None:
    """The program; `None` where it is not installed."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """A context manager. Each page has cookies and storage of its own."""

    def __enter__(self):
        program = chromium()
        assert program is not None
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        flags = [*FLAGS, f"--user-data-dir={self._folder.name}"]
        if os.geteuid() == 0:  # Chromium's sandbox refuses root
            flags.append("--no-sandbox")
        (its_in, self._in), (self._out, its_out) = os.pipe(), os.pipe()
        # Chromium reads descriptor 3 and writes 4; neither end may have these numbers before.
        far = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, 10) for one in (its_in, its_out)]
        with open(os.path.join(self._folder.name, "log"), "wb") as log:  # noqa: PTH118, PTH123
            self.pid = os.posix_spawn(
                program,
                [program, *flags, "about:blank"],
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, far[0], 3),
                    (os.POSIX_SPAWN_DUP2, far[1], 4),
                    (os.POSIX_SPAWN_DUP2, log.fileno(), 2),
                ],
                setpgroup=0,
            )
        for one in (its_in, its_out, *far):
            os.close(one)
        self._number, self._rest = 0, b""
        self.events: list[dict[str, Any]] = []
        return self

    def __exit__(self, *_):
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._in)
        os.close(self._out)
        self._folder.cleanup()

    def call(self, method, session=None, **parameters) -> dict[str, Any]:
        """What a method returns."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._in, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + LIMIT_S
        while True:
            message = self._message(end - time.monotonic())
            assert message is not None, f"{method} has not returned"
            if message.get("id") == self._number:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            self.events.append(message)

    def _message(self, seconds) -> dict[str, Any] | None:
        while b"\0" not in self._rest:
            if not select.select([self._out], [], [], max(0, seconds))[0]:
                return None
            data = os.read(self._out, 1 << 20)
            assert data, "Chromium has ended"
            self._rest += data
        first, _, self._rest = self._rest.partition(b"\0")
        return json.loads(first)

    @contextmanager
    def page(self, url, *, width=1280, height=900, dark=False, touch=False) -> Iterator[Page]:
        """A page that has loaded."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        try:
            target = self.call("Target.createTarget", url="about:blank", browserContextId=context)[
                "targetId"
            ]
            session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            page = Page(self, session, context)
            page.show(width=width, height=height, dark=dark, touch=touch)
            for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
                page.call(f"{domain}.enable")
            page.call("Emulation.setFocusEmulationEnabled", enabled=True)
            page.go(url)
            yield page
        finally:
            self.call("Target.disposeBrowserContext", browserContextId=context)


class Page:
    """One page."""

    def __init__(self, browser, session, context):
        self._browser, self._session, self._context = browser, session, context

    def call(self, method, **parameters):
        return self._browser.call(method, self._session, **parameters)

    def events(self, method) -> list[dict[str, Any]]:
        """The parameters of every event of that name."""
        self.evaluate("0")  # what has happened until now
        return [
            event["params"]
            for event in self._browser.events
            if event.get("sessionId") == self._session and event.get("method") == method
        ]

    def event(self, method) -> dict[str, Any]:
        """The parameters of the only event of that name, which is waited for."""
        end = time.monotonic() + LIMIT_S
        while not (found := self.events(method)):
            assert time.monotonic() < end, f"there is no {method}"
            time.sleep(0.02)
        (one,) = found
        return one

    def allow(self, *permissions):
        """Grants permissions, which a person is asked for otherwise."""
        self._browser.call(
            "Browser.grantPermissions",
            permissions=permissions,
            browserContextId=self._context,
        )

    def show(self, *, width=1280, height=900, dark=False, touch=False, scale=1):
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=touch,
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=touch)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        motion = {"name": "prefers-reduced-motion", "value": "reduce"}
        self.call("Emulation.setEmulatedMedia", features=[scheme, motion])

    def go(self, url):
        self.call("Page.navigate", url=url)
        self.wait(f"location.href.startsWith({url!r}) && document.readyState === 'complete'")

    def evaluate(self, expression) -> Any:
        """What an expression of JavaScript is, or the promise of it becomes."""
        result = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, expression):
        """Until an expression is true."""
        end = time.monotonic() + LIMIT_S
        while not self.evaluate(f"Boolean({expression})"):
            assert time.monotonic() < end, f"{expression} is not true; the page: {self.text}"
            time.sleep(0.02)

    @property
    def text(self) -> str:
        return self.evaluate("document.body.innerText")

    def press(self, key, modifiers=0):
        value, code, text = KEYS[key]
        common = {"key": value, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        kind = "keyDown" if text else "rawKeyDown"
        self.call("Input.dispatchKeyEvent", type=kind, text=text, **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def write(self, text):
        """Types text where the focus is."""
        self.call("Input.insertText", text=text)

    def choose(self, selector, path):
        """Chooses a file, as the dialogue of the system would."""
        node = self.call("Runtime.evaluate", expression=f"document.querySelector({selector!r})")
        self.call("DOM.setFileInputFiles", objectId=node["result"]["objectId"], files=[str(path)])

    def names(self) -> list[tuple[str, str]]:
        """Role and name of every node that a screen reader meets."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node["ignored"]
        ]

    def picture(self, *, whole=False) -> bytes:
        """A PNG of it."""
        picture = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        return base64.b64decode(picture["data"])


def running_browser() -> Iterator[Browser]:
    """What a fixture yields; skips the tests where there is no Chromium."""
    if chromium() is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    with Browser() as browser:
        yield browser
