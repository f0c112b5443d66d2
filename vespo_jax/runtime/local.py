"""The default transport: a spawned sampler process, weights through shared memory."""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from vespo_jax.models import ModelSpec
from vespo_jax.processes import Child, ChildDied
from vespo_jax.runtime import messages
from vespo_jax.runtime.channels import SharedWeights
from vespo_jax.sampler import Order, Result
from vespo_jax.types import Params


class SamplerFailed(ChildDied):
  """The sampler process reported an exception before it died; its traceback is the message."""

  def __init__(self, report: str):
    super().__init__("sampler", None)
    self.args = (f"the sampler process failed:\n{report}",)


class LocalSampler:
  """A sampler in its own process: both channels of one sampler.

  Args:
    spec: of the policy.
    dtype: the sampler's compute type.
    env: environment variables of the process, for instance its share of the GPU's memory.
  """

  def __init__(self, spec: ModelSpec, dtype: str, *, env: Mapping[str, str] | None = None):
    self._weights = SharedWeights(spec)
    start = {"spec": dataclasses.asdict(spec), "dtype": dtype, "weights_fd": self._weights.fd}
    self._child = Child(
      "vespo_jax.runtime.sampler_process",
      name="sampler",
      env=env,
      pass_fds=[self._weights.fd],
      args=[json.dumps(start)],
    )
    self._pending: collections.deque[Order] = collections.deque()

  def publish(self, version: int, params: Params) -> None:
    """Makes `params` the newest weights."""
    self._weights.publish(version, params)

  def put(self, order: Order) -> None:
    """Sends an order. Raises ChildDied if the sampler is gone."""
    self._child.send(messages.encode(messages.pack_order(order)))
    self._pending.append(order)

  def get(self, timeout_s: float) -> Result:
    """The result of the oldest order.

    Raises ChildDied if the sampler is gone (at once, not after the timeout), SamplerFailed with its
    traceback if it failed, TimeoutError if it says nothing for `timeout_s`.
    """
    message = messages.decode(self._child.receive(timeout_s))
    if "error" in message:
      raise SamplerFailed(message["error"])
    return messages.unpack_result(message, self._pending.popleft())

  def health(self) -> dict[str, Any]:
    """`alive`, `pid`, and the number of `pending` orders."""
    return {
      "alive": self._child.alive,
      "pid": self._child.pid,
      "pending": len(self._pending),
    }

  def close(self) -> None:
    """Ends the process and frees the memory. Idempotent."""
    self._child.close()
    self._weights.close()
