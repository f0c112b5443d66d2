"""The life of one worker, whatever brings it its orders: accept, tick, say something."""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import time
import traceback
from collections.abc import Callable
from typing import Any

import tokenizers

from vespo_jax.models import ModelSpec
from vespo_jax.runtime import messages
from vespo_jax.runtime.links import Heartbeat
from vespo_jax.runtime.published import Place, PublishedPieces
from vespo_jax.sampler import WeightChannel, Worker, WorkerSettings, placement
from vespo_jax.weights.wire import Wire

HEARTBEAT_S = 1.0


@dataclasses.dataclass(frozen=True)
class Blueprint:
  """What a worker is made of, as plain values.

  Attributes:
    spec: of the policy.
    settings: how to compute.
    tokenizer: JSON of the `tokenizers` library, for stop strings; "" where there are none.
    published: where weights are published in pieces; None: they come by the transport's channel.
  """

  spec: ModelSpec
  settings: WorkerSettings
  tokenizer: str = ""
  published: Place | None = None

  def to_json(self) -> str:
    """For another process; `from_json` is the inverse."""
    return json.dumps(dataclasses.asdict(self))

  @classmethod
  def from_json(cls, text: str) -> Blueprint:
    """The inverse of `to_json`."""
    fields: dict[str, Any] = json.loads(text)
    place = fields["published"]
    return cls(
      ModelSpec(**fields["spec"]),
      WorkerSettings(**fields["settings"]),
      fields["tokenizer"],
      None if place is None else Place(place["directory"], Wire(**place["wire"])),
    )

  def build(self, channel: WeightChannel | None) -> Worker:
    """A worker that takes its weights in pieces, or from `channel` where there are none."""
    weights = channel
    if self.published is not None:
      mesh = placement.make_mesh(self.settings.tensor)
      shardings = placement.param_shardings(mesh, self.spec)
      rounded = self.settings.dtype == "bfloat16" and not self.settings.weight_noise
      dtype = "bfloat16" if rounded else "float32"  # as it is held, where nothing is done before
      weights = PublishedPieces(self.published, self.spec, shardings, dtype=dtype)
    assert weights is not None, "there is no channel for weights"
    if not self.tokenizer:
      return Worker(self.spec, self.settings, weights)
    backend = tokenizers.Tokenizer.from_str(self.tokenizer)
    return Worker(self.spec, self.settings, weights, lambda ids: backend.decode(list(ids)))


def serve(
  blueprint: Blueprint,
  channel: WeightChannel | None,
  orders: queue.Queue[bytes | None],
  say: Callable[[bytes], None],
) -> bool:
  """A worker's whole life; returns whether it ended well. If not, it has said what failed."""
  try:
    work(blueprint.build(channel), orders, say)
  except Exception:  # whatever it is, the learner must hear of it
    say(messages.encode_error(traceback.format_exc()))
    return False
  return True


def work(worker: Worker, orders: queue.Queue[bytes | None], say: Callable[[bytes], None]) -> None:
  """Works on orders as they come, until one is None; what is unfinished then is dropped.

  Says each result, and between ticks that it is alive, about every `HEARTBEAT_S`. So a long
  generation is heard of all the time, and a tick that never ends is silence. An idle worker sleeps
  until there is an order.
  """
  beat_at = 0.0
  while True:
    if time.monotonic() >= beat_at:
      say(messages.encode(Heartbeat(os.getpid())))
      beat_at = time.monotonic() + HEARTBEAT_S
    try:
      while True:  # take all there are before the next tick
        order = orders.get(block=worker.idle, timeout=HEARTBEAT_S)
        if order is None:
          return
        worker.accept(messages.decode_order(order))
    except queue.Empty:
      pass
    if not worker.idle:
      for result in worker.tick():
        say(messages.encode(result))
