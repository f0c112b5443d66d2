"""When a computation ends, for whoever asks later."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import jax


class Finish:
  """Notes when the arrays of a tree are computed, while whoever dispatched them does other things.

  An error of the computation is left to whoever fetches the arrays.
  """

  def __init__(self, arrays: Any):
    self._at_s = 0.0
    self._thread = threading.Thread(target=self._watch, args=(arrays,), daemon=True)
    self._thread.start()

  def at_s(self) -> float:
    """The `time.perf_counter` of the end; waits for it."""
    self._thread.join()
    return self._at_s

  def _watch(self, arrays: Any) -> None:
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      jax.block_until_ready(arrays)
    self._at_s = time.perf_counter()
