"""The state of one sampler: its orders, its weights and its engine. It knows no transport."""

from __future__ import annotations

import collections
import dataclasses
import time

import jax

from vespo_jax import models, sharding
from vespo_jax.models import ModelSpec
from vespo_jax.sampler import placement
from vespo_jax.sampler.engine import PROMPT_BUCKET, Engine, check_prompts
from vespo_jax.sampler.orders import Order, Result, WeightChannel, WorkerSettings
from vespo_jax.sampler.sequence import Decode, Sampling
from vespo_jax.sampler.weights import prepare
from vespo_jax.types import Params

POLL_S = 0.2  # longest a tick waits for weights


@dataclasses.dataclass(eq=False)
class _Flight:
  """An order that has begun."""

  order: Order
  sequences: list[Sampling]
  began: float
  wait_s: float
  weights_s: float


class Worker:
  """Samples orders; one thread calls it.

  Orders with the same settings share the engine as long as the same weights may sample them; any
  other order begins when nothing is in flight. While a plan waits for weights, before it begins or
  between two of its versions, an order that needs none but those there are is sampled, in an engine
  of its own where the plan has begun: the learner may be waiting for it before it makes any others.
  What an order becomes depends on the order and the weights alone.

  Args:
    spec: of the policy.
    settings: how to compute.
    weights: where to find weights.
    decode: token ids -> text; only stop strings need it.

  Raises ValueError if there are fewer devices than `settings` say, or the model does not divide.
  """

  def __init__(
    self,
    spec: ModelSpec,
    settings: WorkerSettings,
    weights: WeightChannel,
    decode: Decode | None = None,
  ):
    self._spec, self._settings, self._weights, self._decode = spec, settings, weights, decode
    self._mesh = placement.make_mesh(settings.tensor)
    self._shardings = placement.param_shardings(self._mesh, spec)
    self._queue: collections.deque[Order] = collections.deque()
    self._flights: list[_Flight] = []
    self._engine: Engine | None = None
    self._slots, self._longest_prompt = settings.slots, 0
    self._version, self._noise, self._params = -1, 0.0, {}
    self._stage = 0  # of the plan in flight
    self._aside: tuple[Engine, list[_Flight], int] | None = None  # a plan that waits, and its stage
    self._idle_since = time.perf_counter()
    self._wait_s = self._weights_s = 0.0  # what the next order to begin will report
    self._asked_since: float | None = None  # when weights that have not come were first asked for

  @property
  def idle(self) -> bool:
    """Whether nothing is queued or in flight."""
    return not self._queue and not self._flights and self._aside is None

  def accept(self, order: Order) -> None:
    """Queues an order. Raises ValueError if it can never be sampled here."""
    check_prompts(order.prompts)
    if len(order.plan) > 1 and self._settings.partial_rollouts == "off":
      raise ValueError(f"order {order.order_id} changes weights in flight; partial_rollouts is off")
    if self.idle:
      self._wait_s = time.perf_counter() - self._idle_since
    self._queue.append(order)

  @property
  def _running(self) -> Engine:
    assert self._engine is not None, "nothing is in flight"
    return self._engine

  def tick(self) -> list[Result]:
    """One bounded piece of work: fetch weights, begin orders, decode a chunk; returns what ended.

    Raises TimeoutError if an order's weights do not come within `timeout_s`, ValueError for an
    order that cannot be sampled.
    """
    if self.idle:
      return []
    if self._flights:
      if not self._change_weights_in_flight() and not self._set_aside():
        return []
    elif not self._open(self._queue[0]):
      if not self._bring_forward() or not self._open(self._queue[0]):
        return []
    while self._queue and self._may_join(self._queue[0]):
      self._begin(self._queue.popleft())
    self._running.advance(self._limit())
    return self._ended()

  def _open(self, order: Order) -> bool:
    """Weights and an engine for the first order in flight; False if its weights are not there."""
    if order.plan:
      version = order.plan[0][1]
      missing = not self._holds(version, order)
    else:
      version = max(order.weight_version, self._weights.newest())
      missing = version > self._version or not self._holds(self._version, order)
    if missing and not self._fetch(version, order, exact=bool(order.plan)):
      return False
    self._stage, self._asked_since = 0, None  # no wait for other weights goes on meanwhile
    sequences = len(order.prompts) * order.settings.samples_per_prompt
    self._longest_prompt = self._room(order)
    self._slots = self._slots or sequences
    # rows wait for each other where a plan changes the weights, so all of them need a slot
    slots = max(self._slots, sequences) if len(order.plan) > 1 else self._slots
    slots = -(-slots // self._settings.tensor) * self._settings.tensor
    engine = self._engine
    if engine is None or engine.settings != order.settings or not self._fits(order, slots):
      self._engine = engine = Engine(
        self._spec,
        order.settings,
        slots=slots,
        longest_prompt=self._longest_prompt,
        steps=self._settings.chunk,
        decode=self._decode,
        attention=self._settings.attention,
        mesh=self._mesh,
      )
    engine.adopt(self._version, self._params)
    self._begin(self._queue.popleft())
    return True

  def _bring_forward(self) -> bool:
    """Puts the first order that the weights there are can sample to its end before all others;
    False if there is none."""
    newest = self._weights.newest()
    last = lambda order: max((version for _, version in order.plan), default=order.weight_version)
    complete = next((order for order in self._queue if last(order) <= newest), None)
    if complete is None:
      return False
    self._queue.remove(complete)
    self._queue.appendleft(complete)
    return True

  def _set_aside(self) -> bool:
    """Begins an order that needs no other weights, and leaves the plan in flight waiting for its
    next ones; False if there is none, or one waits already."""
    if self._aside is not None or not self._bring_forward():
      return False
    self._running.release()
    self._aside = (self._running, self._flights, self._stage)
    self._engine, self._flights = None, []
    return self._open(self._queue[0])

  def _room(self, order: Order) -> int:
    """For how long a prompt."""
    longest = max(order.longest_prompt, *map(len, order.prompts))
    room = -(-longest // PROMPT_BUCKET) * PROMPT_BUCKET
    return room if order.longest_prompt else max(room, self._longest_prompt)

  def _fits(self, order: Order, slots: int) -> bool:
    running = self._running
    return (running.slots, running.longest_prompt) == (slots, self._room(order))

  def _may_join(self, order: Order) -> bool:
    """Whether an order may begin beside those in flight, and there is a slot for it."""
    first = self._flights[0].order
    named = lambda order: (order.settings, order.plan, order.noisy)
    alike = named(order) == named(first)
    if not alike or self._running.idle_slots <= 0 or not self._fits(order, self._running.slots):
      return False
    if order.plan:
      return len(order.plan) == 1
    if order.weight_version > self._version:
      return False
    return self._settings.partial_rollouts != "off" or self._weights.newest() <= self._version

  def _begin(self, order: Order) -> None:
    key = jax.random.fold_in(jax.random.key(order.seed), order.stream)
    sequences = self._running.submit(key, order.prompts, order.group_ids)
    began = time.perf_counter()
    self._flights.append(_Flight(order, sequences, began, self._wait_s, self._weights_s))
    self._wait_s = self._weights_s = 0.0

  def _limit(self) -> int | None:
    """The token at which the plan in flight changes the weights next."""
    later = self._flights[0].order.plan[self._stage + 1 :]
    return later[0][0] if later else None

  def _change_weights_in_flight(self) -> bool:
    """Adopts what the plan or, without one, the channel says; False if it is not there yet."""
    recompute = self._settings.partial_rollouts == "recompute_cache"
    order, limit = self._flights[0].order, self._limit()
    if plan := order.plan:
      if limit is None or not self._running.stalled(limit):
        return True
      version = plan[self._stage + 1][1]
      if not self._holds(version, order) and not self._fetch(version, order, exact=True):
        return False
      self._stage += 1
    elif self._settings.partial_rollouts == "off" or self._weights.newest() <= self._version:
      return True
    elif not self._fetch(self._version + 1, order, exact=False):
      return True
    self._running.adopt(self._version, self._params, recompute=recompute)
    return True

  def _noise_of(self, order: Order) -> float:
    return self._settings.weight_noise if order.noisy else 0.0

  def _holds(self, version: int, order: Order) -> bool:
    return (version, self._noise_of(order)) == (self._version, self._noise)

  def _fetch(self, version: int, order: Order, exact: bool) -> bool:
    """Reads weights for an order; False if they are not there. For those that the learner has not
    published yet there is no limit, which is the learner's to set; raises TimeoutError if ones that
    it has are not there for `timeout_s`."""
    started = time.perf_counter()
    try:
      self._version, params = self._weights.read(version, POLL_S, exact)
    except TimeoutError as error:
      if version > self._weights.newest():
        self._asked_since = None
        return False
      self._asked_since = self._asked_since or started
      if time.perf_counter() - self._asked_since > self._settings.timeout_s:
        raise TimeoutError(f"for {self._settings.timeout_s:g} s: {error}") from error
      return False
    finally:
      spent = time.perf_counter() - started
      self._weights_s += 0.0 if self._flights else spent
      for flight in self._flights:
        flight.weights_s += spent
    self._asked_since = None
    self._params = {}
    if self._engine is not None:
      self._engine.release()  # what is held at once is these weights and the next
    self._noise = self._noise_of(order)
    if self._mesh is not None:
      params = sharding.place(params, self._shardings)
    params = prepare(params, self._version, self._settings.dtype, self._noise)
    self._params: Params = models.unstack(params)
    return True

  def _ended(self) -> list[Result]:
    now = time.perf_counter()
    done = [f for f in self._flights if all(s.finish for s in f.sequences)]
    self._flights = [f for f in self._flights if f not in done]
    if not self._flights and self._aside is not None:
      (self._engine, self._flights, self._stage), self._aside = self._aside, None
    if self.idle:
      self._idle_since = now
    return [
      Result(
        f.order.order_id,
        [sequence.rollout() for sequence in f.sequences],
        now - f.began,
        f.wait_s,
        f.weights_s,
      )
      for f in done
    ]
