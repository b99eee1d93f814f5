"""A headless Chromium, driven over the DevTools protocol through a pair of pipes."""

import base64
import fcntl
import json
import os
import pathlib
import shutil
import signal
import tempfile
from typing import Any

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
PLAYWRIGHT = "chromium*-*/chrome-*/*headless-shell"


def program() -> str | None:
  """The browser: $CHROMIUM, one on the PATH, or one that Playwright installed."""
  if named := os.environ.get("CHROMIUM"):
    return named
  if found := next(filter(None, map(shutil.which, NAMES)), None):
    return found
  cache = pathlib.Path("~/.cache/ms-playwright").expanduser()
  return next((str(path) for path in sorted(cache.glob(PLAYWRIGHT))), None)


class Page:
  """One page, of a browser of its own.

  Attributes:
    mistakes: what its scripts threw or complained of.
  """

  def __init__(self, url: str, width: int = 1100, height: int = 900, dark=False):
    """Opens `url` and waits until it is loaded; sizes are in pixels."""
    self.mistakes: list[str] = []
    self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    ours, theirs = zip(os.pipe()[::-1], os.pipe(), strict=True)
    self._to, self._from = ours
    arguments = [
      program(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
      f"--user-data-dir={self._profile.name}", "--remote-debugging-pipe",
    ]  # fmt: skip
    # The browser reads file descriptor 3 and writes 4.
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in theirs]
    self._process = os.posix_spawn(
      arguments[0],
      arguments,
      os.environ,
      file_actions=[
        *((os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)),
        *((os.POSIX_SPAWN_DUP2, fd, to) for fd, to in zip(high, (3, 4), strict=True)),
      ],
    )
    for fd in (*theirs, *high):
      os.close(fd)
    self._answers = os.fdopen(self._from, "rb")
    self._number, self._session = 0, None
    target = self.call("Target.createTarget", url="about:blank")["targetId"]
    attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
    self._session = attached["sessionId"]
    self.call("Runtime.enable")
    self.call("Page.enable")
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    self.call("Emulation.setEmulatedMedia", features=[scheme])
    self.resize(width, height)
    self.call("Page.navigate", url=url)
    while self._read().get("method") != "Page.loadEventFired":
      pass

  def __enter__(self) -> "Page":
    return self

  def __exit__(self, *_) -> None:
    os.kill(self._process, signal.SIGKILL)
    os.waitpid(self._process, 0)
    os.close(self._to)
    self._answers.close()
    self._profile.cleanup()

  def call(self, method: str, **params: Any) -> dict[str, Any]:
    """A command of the protocol; its result."""
    self._number += 1
    message = {"id": self._number, "method": method, "params": params}
    if self._session:
      message["sessionId"] = self._session
    os.write(self._to, json.dumps(message).encode() + b"\0")
    while (answer := self._read()).get("id") != self._number:
      pass
    assert "error" not in answer, f"{method}: {answer['error']}"
    return answer["result"]

  def _read(self) -> dict[str, Any]:
    data = bytearray()
    while (byte := self._answers.read(1)) != b"\0":
      assert byte, "the browser has ended"
      data += byte
    message = json.loads(data)
    if message.get("method") == "Runtime.exceptionThrown":
      details = message["params"]["exceptionDetails"]
      self.mistakes.append(details.get("exception", details).get("description", ""))
    return message

  def run(self, script: str) -> Any:
    """The value of a JavaScript expression."""
    found = self.call(
      "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
    )
    assert "exceptionDetails" not in found, found["exceptionDetails"]
    return found["result"].get("value")

  def resize(self, width: int, height: int) -> None:
    """Gives the page another size."""
    size = dict(width=width, height=height, deviceScaleFactor=1, mobile=False)
    self.call("Emulation.setDeviceMetricsOverride", **size)

  def type(self, field: str, text: str) -> None:
    """Puts a text into a field, key for key as a user would: the page sees events."""
    self.run(f"document.getElementById('{field}').focus()")
    self.run(f"document.getElementById('{field}').select()")
    self.call("Input.insertText", text=text)

  def choose(self, field: str, value: str) -> None:
    """Sets a list or a slider, which then report it to the page."""
    self.run(
      f"(x => {{ x.value = {json.dumps(value)};"
      "for (const what of ['input', 'change'])"
      "x.dispatchEvent(new Event(what, {bubbles: true})); })"
      f"(document.getElementById('{field}'))"
    )

  def click(self, field: str) -> None:
    """Clicks into the middle of an element."""
    self.run(f"document.getElementById('{field}').scrollIntoView({{block: 'center'}})")
    box = self.run(
      f"(b => [b.x + b.width / 2, b.y + b.height / 2])"
      f"(document.getElementById('{field}').getBoundingClientRect())"
    )
    at = dict(zip("xy", box, strict=True), button="left", clickCount=1)
    for kind in ("mousePressed", "mouseReleased"):
      self.call("Input.dispatchMouseEvent", type=kind, **at)

  def picture(self, path: pathlib.Path) -> None:
    """Saves the whole page as a PNG."""
    shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
    path.write_bytes(base64.b64decode(shot["data"]))
