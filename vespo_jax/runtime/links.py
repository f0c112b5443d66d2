"""What the learner holds, what the pool behind it asks of a transport, and how workers fail."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, Protocol

from vespo_jax.sampler import Order, Result
from vespo_jax.types import Params

FailureKind = Literal["died", "hung", "malformed", "non_finite", "stale", "quarantined"]


class Fault(Exception):
  """A worker can no longer be relied on: what kind of failure, and the reason in words."""

  def __init__(self, kind: FailureKind, reason: str):
    super().__init__(reason)
    self.kind: FailureKind = kind


class SamplersFailed(RuntimeError):
  """Workers failed more often than the run tolerates; the message lists every reason.

  Args:
    failures: as `Sampler.failures` gives them.
    tolerated: how many the run tolerates.
  """

  def __init__(self, failures: Sequence[Mapping[str, Any]], tolerated: int):
    reasons = [
      f"  after {f['wall_time_s']:.1f} s worker {f['worker']} {f['kind']}: {f['reason']}"
      for f in failures
    ]
    super().__init__(
      "\n".join([f"samplers failed {len(failures)} times; {tolerated} are tolerated:", *reasons])
    )


@dataclasses.dataclass(frozen=True)
class Heartbeat:
  """A sign of life between two ticks of a worker.

  Attributes:
    pid: of the process the worker is in.
  """

  pid: int


@dataclasses.dataclass(frozen=True)
class FailureSettings:
  """When a worker has failed, and what then.

  Attributes:
    max_failures: failures of all workers that a run tolerates; one more ends it.
    hang_timeout_s: silence after which a worker has failed: longer than it takes to start, and than
      its longest tick, compilation included.
    backoff_s: from a worker's first failure to its restart; doubled for each further failure
      without a result in between.
    max_backoff_s: the most that grows to.
  """

  max_failures: int = 10
  hang_timeout_s: float = 300.0
  backoff_s: float = 0.5
  max_backoff_s: float = 30.0

  def __post_init__(self):
    for field, good in (
      ("max_failures", self.max_failures >= 0),
      ("hang_timeout_s", self.hang_timeout_s > 0),
      ("backoff_s", self.backoff_s >= 0),
      ("max_backoff_s", self.max_backoff_s >= self.backoff_s),
    ):
      if not good:
        raise ValueError(f"failure setting {field}={getattr(self, field)} is out of range")


class Preempted(Exception):
  """The process was asked to stop, and what it waited for has not come."""


@dataclasses.dataclass(frozen=True)
class Snapshot:
  """What samplers hold that a run cannot make again.

  Attributes:
    results: of training orders, finished and not delivered.
    weights: by version, those that unfinished training orders are sampled with, and those that
      were wanted; host arrays, or spread over the learner's devices where they are published in
      pieces.
  """

  results: Sequence[Result] = ()
  weights: Mapping[int, Params] = dataclasses.field(default_factory=dict)


class Link(Protocol):
  """One worker, from its start to its end. No method waits without a limit."""

  def send(self, order: Order) -> None:
    """Hands an order over. Raises Fault."""
    ...

  def poll(self) -> Result | Heartbeat | None:
    """The next thing the worker said, or None at once. Raises Fault if it died or talks nonsense.

    What it said before it died comes first.
    """
    ...

  @property
  def alive(self) -> bool:
    """Whether the worker is known to be running."""
    ...

  @property
  def pid(self) -> int | None:
    """Its process, once known."""
    ...

  def kill(self) -> None:
    """Ends the worker at once. Idempotent."""
    ...

  def close(self) -> None:
    """Lets the worker end, and ends it if it does not. Idempotent."""
    ...


class Transport(Protocol):
  """Where workers run, and how weights get there."""

  def start(self, worker: int) -> Link:
    """A fresh worker, which finds the newest weights. Raises Fault if none can be started."""
    ...

  def publish(self, version: int, params: Params) -> None:
    """Makes a whole set of weights the newest; the arrays may change after the call."""
    ...

  def weights(self, version: int) -> Params:
    """A kept set of the caller's own, see `Snapshot`. Raises LookupError if it is not kept."""
    ...

  def close(self) -> None:
    """Frees what the workers shared. Idempotent."""
    ...


class Sampler(Protocol):
  """What the learner holds: weights and orders in, results out."""

  def publish(self, version: int, params: Params) -> None:
    """Makes a whole set of weights the newest; the arrays may change after the call."""
    ...

  def put(self, order: Order) -> None:
    """Hands an order over. Raises SamplersFailed."""
    ...

  def get(self, timeout_s: float, order_id: int | None = None) -> Result:
    """The result of an order, or of the oldest. Raises SamplersFailed, TimeoutError if no result of
    any order arrives for `timeout_s`, Preempted, LookupError if there is no such order."""
    ...

  def snapshot(self, newest: bool, versions: Collection[int] = ()) -> Snapshot:
    """What must be saved of the samplers, with the newest weights or without, and with those kept
    of further `versions`; nothing changes."""
    ...

  def health(self) -> dict[str, Any]:
    """`workers` (each `alive`, `pid`, its `orders`, `silent_s`), `pending` orders, `failures`."""
    ...

  def failures(self) -> list[dict[str, Any]]:
    """Each failure so far: `worker`, `kind`, `reason`, `orders` given again, `wall_time_s`."""
    ...

  def quarantine(self, worker: int, reason: str) -> None:
    """Refuses what `worker` has not delivered yet, and starts it anew; counts as a failure."""
    ...

  def close(self) -> None:
    """Ends the workers. Idempotent."""
    ...


class Clock(Protocol):
  """The time, in seconds; what tests put in the place of the `time` module."""

  def monotonic(self) -> float:
    """Seconds since whenever."""
    ...

  def sleep(self, seconds: float, /) -> None:
    """Lets that much time pass."""
    ...
