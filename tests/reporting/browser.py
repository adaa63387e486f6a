"""A headless browser, driven over plain HTTP as WebDriver has it (W3C): Debian's chromium and chromium-driver."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

MISSING = (
    "" if shutil.which("chromium") and shutil.which("chromedriver") else "no chromium and chromedriver on the PATH"
)
"""Why no browser can be driven here; empty where one can."""
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--hide-scrollbars",
)  # fmt: skip
_OPEN = build_opener(ProxyHandler({})).open  # the driver is on this machine, whatever the proxy


class Browser:
    """One window."""

    def __init__(self, driver: str, folder: Path) -> None:
        options = {
            "args": [*_FLAGS, f"--user-data-dir={folder}"],
            "binary": shutil.which("chromium"),
        }
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        answer = _ask(f"{driver}/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"{driver}/session/{answer['sessionId']}"

    def show(self, file: Path, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """Open a file in a window of this size, as one who prefers light or dark."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.command("Emulation.setDeviceMetricsOverride", **metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.command("Emulation.setEmulatedMedia", features=features)
        _ask(f"{self._session}/url", {"url": file.resolve().as_uri()})

    def command(self, name: str, **parameters: Any) -> Any:
        """Send a command of the DevTools."""
        return _ask(f"{self._session}/goog/cdp/execute", {"cmd": name, "params": parameters})

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script in the page and give what it returns."""
        return _ask(f"{self._session}/execute/sync", {"script": script, "args": list(arguments)})

    def press(self, *keys: str) -> None:
        """Press keys one after the other, wherever the focus is."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        _ask(f"{self._session}/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def complaints(self) -> list[str]:
        """What the console has been told since it was asked last."""
        return [entry["message"] for entry in _ask(f"{self._session}/se/log", {"type": "browser"})]

    def requests(self) -> list[str]:
        """What was asked for since it was asked last, without the page itself and data: URLs."""
        entries = _ask(f"{self._session}/se/log", {"type": "performance"})
        found = [json.loads(entry["message"])["message"] for entry in entries]
        asked = [own["params"] for own in found if own["method"] == "Network.requestWillBeSent"]
        urls = [own["request"]["url"] for own in asked if own["documentURL"].startswith("file:")]
        return [url for url in urls if not url.startswith(("file:", "data:"))]

    def picture(self, target: Path, *, whole: bool = True) -> None:
        """Write a screenshot, of the whole page or of the window."""
        shot = self.command("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        target.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        """End the session."""
        _OPEN(Request(self._session, method="DELETE"), timeout=30).close()


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Start a driver and a browser with an empty profile in ``folder``; both end with the block."""
    driver = subprocess.Popen(
        ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert driver.stdout is not None
        port = next(
            found[1] for line in driver.stdout if (found := re.search(r"started successfully on port (\d+)", line))
        )
        own = Browser(f"http://127.0.0.1:{port}", folder)
        try:
            yield own
        finally:
            own.close()
    finally:
        driver.terminate()
        driver.wait(30)
        if driver.stdout is not None:
            driver.stdout.close()


def _ask(url: str, body: dict[str, Any]) -> Any:
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with _OPEN(request, timeout=60) as answer:
        return json.load(answer)["value"]
