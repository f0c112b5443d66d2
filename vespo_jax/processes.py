"""Child processes that talk in bytes, cannot outlive their parent, and whose death is an error.

A child is a fresh interpreter (`python -m MODULE FD`), never a fork of a process that runs JAX.
Parent and child each hold one end of a Unix socket pair; whole messages travel as bytes, so nothing
is pickled. When either process dies, in whatever way, the kernel closes its end: the parent's next
`receive` raises `ChildDied`, and a watchdog thread in the child ends the child at once.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing import connection

STALL_TIMEOUT_S = 60.0  # for a peer that stops in the middle of a message
MAX_MESSAGE_BYTES = 1 << 30  # of what a child sends; a longer one is not taken into memory


class ChildDied(RuntimeError):
  """A child process ended while it was needed. `exit_code` is negative for a signal."""

  def __init__(self, name: str, exit_code: int | None):
    self.exit_code = exit_code
    how = "closed its connection" if exit_code is None else f"exited with code {exit_code}"
    if exit_code is not None and exit_code < 0:
      how = f"was killed by {signal.Signals(-exit_code).name}"
    super().__init__(f"the {name} process died: it {how}")


class ChildStalled(TimeoutError):
  """A child stopped in the middle of a message, or began one that is too long: the connection to it
  is of no more use."""


class Child:
  """A running child process and the socket to it.

  Args:
    module: what `python -m` runs; it must call `serve_parent` with the file descriptor it is given.
    name: how errors call the process, for instance "sampler".
    env: environment variables set on top of this process's own.
    pass_fds: further open file descriptors the child inherits under the same numbers.
    args: further command-line arguments, after the descriptor of the socket.
  """

  def __init__(
    self,
    module: str,
    *,
    name: str,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    args: Sequence[str] = (),
  ):
    self.name = name
    self._connection, theirs = connection.Pipe(duplex=True)
    _limit_stalls(self._connection.fileno())
    try:
      self._process = subprocess.Popen(
        [sys.executable, "-m", module, str(theirs.fileno()), *args],
        pass_fds=[theirs.fileno(), *pass_fds],
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        process_group=0,  # a terminal's Ctrl-C is the parent's to handle, from the first moment on
      )
    finally:
      theirs.close()

  @property
  def pid(self) -> int:
    """The process id."""
    return self._process.pid

  @property
  def alive(self) -> bool:
    """Whether the process is still running."""
    return self._process.poll() is None

  def send(self, message: bytes) -> None:
    """Sends one whole message. Raises ChildDied if the child is gone, ChildStalled if it does not
    read for `STALL_TIMEOUT_S`."""
    try:
      self._connection.send_bytes(message)
    except BlockingIOError as error:
      raise ChildStalled(f"the {self.name} process (pid {self.pid}) stopped reading") from error
    except (BrokenPipeError, ConnectionResetError, OSError) as error:
      raise ChildDied(self.name, self._exit_code()) from error

  def receive(self, timeout_s: float) -> bytes:
    """The next message. Raises ChildDied if the child is gone, TimeoutError if none begins within
    `timeout_s`, ChildStalled if one begins and does not go on for `STALL_TIMEOUT_S` or is longer
    than `MAX_MESSAGE_BYTES`."""
    try:
      if self._connection.poll(timeout_s):
        return self._connection.recv_bytes(MAX_MESSAGE_BYTES)
    except BlockingIOError as error:
      raise ChildStalled(f"the {self.name} process (pid {self.pid}) stopped writing") from error
    except (EOFError, ConnectionResetError) as error:
      raise ChildDied(self.name, self._exit_code()) from error
    except OSError as error:
      raise ChildStalled(f"the {self.name} process (pid {self.pid}): {error}") from error
    raise TimeoutError(f"the {self.name} process (pid {self.pid}) sent nothing for {timeout_s:g} s")

  def close(self, grace_s: float = 5.0) -> None:
    """Ends the child: hang up, then SIGTERM, then SIGKILL, each after `grace_s`. Idempotent."""
    self._connection.close()
    for stop in (None, self._process.terminate, self._process.kill):
      if stop is not None:
        stop()
      try:
        self._process.wait(grace_s)
        return
      except subprocess.TimeoutExpired:
        continue

  def kill(self, grace_s: float = 5.0) -> None:
    """Ends the child with SIGKILL, at once; waits up to `grace_s` for the kernel. Idempotent."""
    self._connection.close()
    self._process.kill()
    try:
      self._process.wait(grace_s)
    except subprocess.TimeoutExpired:
      pass  # the kernel has it in a device driver; nothing else can be done from here

  def _exit_code(self) -> int | None:
    deadline = time.monotonic() + 2.0  # the socket closes a moment before the process is reaped
    while self._process.poll() is None and time.monotonic() < deadline:
      time.sleep(0.01)
    return self._process.returncode


def _limit_stalls(fd: int) -> None:
  limit = struct.pack("ll", int(STALL_TIMEOUT_S), 0)
  with socket.socket(fileno=os.dup(fd)) as view:  # the options belong to the shared open socket
    for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
      view.setsockopt(socket.SOL_SOCKET, option, limit)


def serve_parent(fd: int) -> connection.Connection:
  """The child's end: wraps descriptor `fd` and starts the watchdog that ends this process with its
  parent. Returns a connection whose `send_bytes`/`recv_bytes` carry whole messages."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle

  def watch() -> None:
    poller = select.poll()
    poller.register(fd, select.POLLHUP)
    poller.poll()
    os._exit(0)

  threading.Thread(target=watch, name="parent-watchdog", daemon=True).start()
  return connection.Connection(fd)
