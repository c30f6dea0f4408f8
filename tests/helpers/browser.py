"""Headless Chromium by the plain protocol of chromedriver: no package is needed, only the two programs."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAMS = {
    "browser": ("chromium", "chromium-browser", "google-chrome"),
    "driver": ("chromedriver",),
}
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's own key
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage")


def missing_program() -> str:
    """Which of the two programs is not installed; empty where both are."""
    return next((what for what in PROGRAMS if not _path(what)), "")


def _path(what: str) -> str | None:
    return next((found for name in PROGRAMS[what] if (found := shutil.which(name))), None)


class Browser:
    """One session. Scripts run in the page; ``width`` and the colour scheme can be changed."""

    def __init__(self, address: str, downloads: Path) -> None:
        self._address = address
        options = {"binary": _path("browser"), "args": FLAGS}
        options["prefs"] = {"download.default_directory": str(downloads)}
        wanted = {"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}}
        self._session = f"/session/{self._call('POST', '/session', wanted)['sessionId']}"

    def open(self, path: Path) -> None:
        """Load a file."""
        self._call("POST", f"{self._session}/url", {"url": path.resolve().as_uri()})

    def run(self, script: str, *values: Any) -> Any:
        """What a script in the page returns; ``values`` are its arguments."""
        return self._call("POST", f"{self._session}/execute/sync", {"script": script, "args": list(values)})

    def click(self, selector: str) -> None:
        """Click the first element of a selector, as a user does: it must be visible and uncovered."""
        wanted = {"using": "css selector", "value": selector}
        element = self._call("POST", f"{self._session}/element", wanted)[ELEMENT]
        self._call("POST", f"{self._session}/element/{element}/click", {})

    def devtools(self, command: str, **parameters: Any) -> Any:
        """A command of the DevTools protocol."""
        wanted = {"cmd": command, "params": parameters}
        return self._call("POST", f"{self._session}/goog/cdp/execute", wanted)

    def show_as(self, width: int, height: int = 800, scheme: str = "light") -> None:
        """Set the size of the window in pixels, and ``light`` or ``dark``."""
        is_phone = width < 600
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=is_phone,
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.devtools("Emulation.setEmulatedMedia", media="screen", features=features)

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """Save the whole page, or only what is visible, as PNG."""
        shot = self.devtools("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def pdf(self, path: Path) -> None:
        """Save what a printer would get, on A4."""
        self.devtools("Emulation.setEmulatedMedia", media="", features=[])
        made = self.devtools("Page.printToPDF", printBackground=True, paperWidth=8.27, paperHeight=11.69)
        path.write_bytes(base64.b64decode(made["data"]))

    def close(self) -> None:
        self._call("DELETE", self._session)

    def _call(self, method: str, path: str, value: Any = None) -> Any:
        body = None if value is None else json.dumps(value).encode()
        request = urllib.request.Request(self._address + path, body, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{path}: {json.load(error)['value']['message']}") from None


@contextmanager
def chromium(downloads: Path) -> Iterator[Browser]:
    """A browser that saves downloads in a folder; it and its driver end with the block."""
    driver = subprocess.Popen([_path("driver"), "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        port = next(line.split()[-1].rstrip(".") for line in driver.stdout if "successfully on port" in line)
        browser = Browser(f"http://127.0.0.1:{port}", downloads)
        try:
            yield browser
        finally:
            browser.close()
    finally:
        driver.terminate()
        driver.wait(10)
        driver.stdout.close()
