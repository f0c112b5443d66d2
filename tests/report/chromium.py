"""A headless Chromium, driven by the DevTools protocol over two pipes: no port and no driver."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
TIMEOUT_S = 60.0
FLAGS = (
  "--headless=new",
  "--no-sandbox",  # it refuses to run as root with one; the pages are ours
  "--disable-gpu",
  "--disable-dev-shm-usage",
  "--disable-extensions",
  "--disable-background-networking",
  "--disable-component-update",
  "--no-first-run",
  "--remote-debugging-pipe",
)


def find() -> str | None:
  """The browser's program: what the environment's CHROMIUM says, or the first that is installed."""
  return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
  """A browser with one page; use it as a context manager.

  Attributes:
    errors: exceptions, and errors on the console, of the page so far.
    requests: addresses of all that it asked for.
  """

  def __init__(self, program: str, profile: Path):
    ours, theirs = os.pipe(), os.pipe()
    theirs_in, theirs_out = (_high(fd) for fd in (ours[0], theirs[1]))
    self._out, self._in = ours[1], theirs[0]

    def place() -> None:  # where the browser looks for them
      os.dup2(theirs_in, 3)
      os.dup2(theirs_out, 4)

    self._process = subprocess.Popen(
      [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
      pass_fds=(3, 4),
      preexec_fn=place,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      start_new_session=True,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    self._rest, self._number, self._session = b"", 0, ""
    self.errors: list[str] = []
    self.requests: list[str] = []

  def __enter__(self) -> Browser:
    target = self.call("Target.createTarget", url="about:blank")["targetId"]
    attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
    self._session = attached["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
      self.call(f"{domain}.enable")
    return self

  def __exit__(self, *exc_info: object) -> None:
    self._session = ""
    with contextlib.suppress(OSError, TimeoutError):
      self.call("Browser.close")
    try:
      self._process.wait(10)
    except subprocess.TimeoutExpired:
      os.killpg(self._process.pid, 9)
      self._process.wait()
    os.close(self._in)
    os.close(self._out)

  def call(self, method: str, **params: Any) -> dict[str, Any]:
    """The result of one call. Raises RuntimeError with the browser's words, or TimeoutError."""
    self._number += 1
    message = {"id": self._number, "method": method, "params": params}
    if self._session:
      message["sessionId"] = self._session
    os.write(self._out, json.dumps(message).encode() + b"\0")
    while True:
      answer = self._next()
      if answer.get("id") == self._number:
        if "error" in answer:
          raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

  def open(self, address: str) -> None:
    """Loads a page and waits until it has run."""
    self.errors.clear()
    self.requests.clear()
    self.call("Page.navigate", url="about:blank")  # so that another fragment is another page
    self.call("Page.navigate", url=address)
    loaded = "complete" + address.partition("#")[0]
    deadline = time.monotonic() + TIMEOUT_S
    while self.run("document.readyState + location.href.split('#')[0]") != loaded:
      if time.monotonic() > deadline:
        raise TimeoutError(address)
      time.sleep(0.02)

  def run(self, expression: str) -> Any:
    """The value of a script's expression, promises awaited. Raises RuntimeError if it throws."""
    done = self.call(
      "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
    )
    if "exceptionDetails" in done:
      raise RuntimeError(done["exceptionDetails"].get("exception", {}).get("description", ""))
    return done["result"].get("value")

  def press(self, *keys: str) -> None:
    """Presses keys by their name in `KeyboardEvent.key`."""
    for key in keys:
      text = {"text": key} if len(key) == 1 else {}
      self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
      self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

  def look(self, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
    """The size of the window and the colour scheme that people prefer."""
    self.call(
      "Emulation.setDeviceMetricsOverride",
      width=width,
      height=height,
      deviceScaleFactor=1,
      mobile=False,
    )
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    self.call("Emulation.setEmulatedMedia", features=features)

  def screenshot(self, path: Path) -> None:
    """Writes what is in the window as a PNG."""
    path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

  def _next(self) -> dict[str, Any]:
    deadline = time.monotonic() + TIMEOUT_S
    while b"\0" not in self._rest:
      ready, _, _ = select.select([self._in], [], [], max(deadline - time.monotonic(), 0))
      data = os.read(self._in, 1 << 20) if ready else b""
      if not data:
        raise TimeoutError("the browser does not answer")
      self._rest += data
    message, _, self._rest = self._rest.partition(b"\0")
    event = json.loads(message)
    params = event.get("params", {})
    if event.get("method") == "Runtime.exceptionThrown":
      self.errors.append(str(params["exceptionDetails"]))
    elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
      self.errors.append(params["entry"]["text"])
    elif event.get("method") == "Network.requestWillBeSent":
      self.requests.append(params["request"]["url"])
    return event


def _high(fd: int) -> int:
  """The same file under a number that is not in the way of others."""
  copy = fcntl.fcntl(fd, fcntl.F_DUPFD, 10)
  os.close(fd)
  return copy
