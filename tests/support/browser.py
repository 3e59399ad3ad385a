"""A headless Chromium for tests, driven through chromedriver's W3C protocol with the standard library alone."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HOW = "needs a browser and its driver: apt-get install chromium chromium-driver"
START_S = 60
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""The key of an element's id, fixed by the W3C."""


def missing() -> bool:
    return not (shutil.which("chromium") and shutil.which("chromedriver"))


class Browser:
    """One window. Scripts are function bodies: they see `arguments` and `return` JSON."""

    def __init__(self, base: str) -> None:
        self.base = base
        options = {
            "binary": shutil.which("chromium"),
            "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"],
        }
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        opened = _ask(f"{base}/session", {"capabilities": {"alwaysMatch": wanted}})
        self.session = f"{base}/session/{opened['sessionId']}"

    def open(self, path: Path) -> None:
        _ask(f"{self.session}/url", {"url": path.as_uri()})

    def run(self, script: str, *arguments: object) -> Any:
        return _ask(f"{self.session}/execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, script: str) -> Any:
        """The first value of `script` that is true; TimeoutError names the script that never was."""
        for _ in range(200):
            value = self.run(script)
            if value:
                return value
            time.sleep(0.05)
        raise TimeoutError(f"never true: {script}")

    def click(self, css: str) -> None:
        """A real click in the middle of the first element that fits, which must be in reach of the mouse."""
        found = _ask(f"{self.session}/element", {"using": "css selector", "value": css})
        _ask(f"{self.session}/element/{found[ELEMENT]}/click", {})

    def keys(self, css: str, text: str) -> None:
        found = _ask(f"{self.session}/element", {"using": "css selector", "value": css})
        _ask(f"{self.session}/element/{found[ELEMENT]}/value", {"text": text})

    def devtools(self, command: str, **parameters: object) -> Any:
        return _ask(f"{self.session}/goog/cdp/execute", {"cmd": command, "params": parameters})

    def size(self, width: int, height: int) -> None:
        """Of the page itself, below what a window can have."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    def prefer(self, scheme: str) -> None:
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.devtools("Emulation.setEmulatedMedia", features=[feature])

    def log(self) -> list[str]:
        """What the console has said since the last call: errors of scripts, refusals of the security policy."""
        return [line["message"] for line in _ask(f"{self.session}/se/log", {"type": "browser"})]

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(_ask(f"{self.session}/screenshot")))


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A fresh profile, gone afterwards with driver and browser."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        log = Path(folder) / "driver.log"
        with log.open("w") as out:
            driver = subprocess.Popen(
                [str(shutil.which("chromedriver")), "--port=0"],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=_environment(folder),
            )
        try:
            window = Browser(f"http://127.0.0.1:{_port(log, driver)}")
            try:
                yield window
            finally:
                _ask(window.session, method="DELETE")
        finally:
            driver.terminate()
            driver.wait(timeout=START_S)


def _environment(folder: str) -> dict[str, str]:
    return {"HOME": folder, "TMPDIR": folder, "PATH": "/usr/local/bin:/usr/bin:/bin", "no_proxy": "127.0.0.1"}


def _port(log: Path, driver: subprocess.Popen[bytes]) -> int:
    for _ in range(START_S * 20):
        found = re.search(r"successfully on port (\d+)", log.read_text())
        if found:
            return int(found.group(1))
        if driver.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(f"chromedriver did not start: {log.read_text()}")


def _ask(url: str, body: dict[str, object] | None = None, *, method: str | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=START_S) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        with error:
            raise RuntimeError(json.load(error)["value"]["message"]) from error
