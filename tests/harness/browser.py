"""A real headless Chromium over its debugging pipe: pages are opened, asked, photographed; requests are seen."""

import base64
import contextlib
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FOUND = next(filter(None, map(shutil.which, NAMES)), None)
needed = pytest.mark.skipif(FOUND is None, reason=f"no browser on PATH: {', '.join(NAMES)}")
FLAGS = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --hide-scrollbars"
KEYS = {"Tab": 9, "Enter": 13}


class Browser:
    """A browser with one page.

    Attributes:
      requests: addresses that were asked for since the page was opened, its own and what it holds within itself apart.
      complaints: what the browser's console said.
    """

    def __init__(self, into: int, out: Any):
        self._into, self._out, self._number = into, out, 0
        self.requests: list[str] = []
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = None
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if getattr(self, "_session", None):
            message["sessionId"] = self._session
        os.write(self._into, json.dumps(message).encode() + b"\0")
        return self._until(lambda said: said.get("id") == self._number)["result"]

    def open(self, path: pathlib.Path, width: int, height: int, dark: bool = False) -> None:
        """Open a file in a window of a size in CSS pixels and wait until all of it is there."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.requests, self.complaints, self._page = [], [], path.resolve().as_uri()
        self.call("Page.navigate", url=self._page)
        self._until(lambda said: said.get("method") == "Page.loadEventFired")
        self.ask("Promise.all([...document.images].map(x => x.decode().catch(() => null))).then(() => 0)")

    def ask(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page; one of a promise, once it has it."""
        given = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        return self.call("Runtime.evaluate", **given)["result"].get("value")

    def press(self, key: str) -> None:
        """Press a key."""
        for kind in ("keyDown", "keyUp"):
            code = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, **code, **text)

    def photograph(self, path: pathlib.Path, whole: bool = False) -> None:
        """Write what the window shows, or the whole page, as PNG."""
        taken = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(taken["data"]))

    def _until(self, wanted: Any) -> dict[str, Any]:
        """Read messages, keeping record of requests and complaints, until one is wanted, and return it."""
        while True:
            said = json.loads(self._read())
            if said.get("method") == "Network.requestWillBeSent":
                address = said["params"]["request"]["url"]
                if not address.startswith("data:") and address.partition("#")[0] != self._page:
                    self.requests.append(address)
            if said.get("method") == "Log.entryAdded":
                self.complaints.append(said["params"]["entry"]["text"])
            if wanted(said):
                assert "error" not in said, said
                return said

    def _read(self) -> bytes:
        found = bytearray()
        while (byte := self._out.read(1)) != b"\0":
            if not byte:
                raise EOFError("the browser has ended")
            found += byte
        return bytes(found)


@contextlib.contextmanager
def browser(folder: pathlib.Path) -> Iterator[Browser]:
    """Run a browser, what it writes under `folder`."""
    theirs, into = os.pipe()
    out, ours = os.pipe()
    where = f"--remote-debugging-pipe --user-data-dir={shlex.quote(str(folder / 'browser'))} --no-startup-window"
    command = f"exec {shlex.quote(FOUND)} {FLAGS} {where} 3<&{theirs} 4>&{ours} > /dev/null 2>&1"
    process = subprocess.Popen(["bash", "-c", command], pass_fds=(theirs, ours), start_new_session=True)
    os.close(theirs)
    os.close(ours)
    try:
        with os.fdopen(out, "rb") as answers:
            yield Browser(into, answers)
    finally:
        os.close(into)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
