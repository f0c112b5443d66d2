"""The state of one sampler: its queue of orders, its weights. It knows no transport."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp

from vespo_jax.models import ModelSpec
from vespo_jax.sampler.generate import generate
from vespo_jax.sampler.settings import Settings
from vespo_jax.types import Params, Plan, Rollout, TokenIds

WEIGHTS_TIMEOUT_S = 60.0  # an order is sent after its weights are published, so this is generous


@dataclasses.dataclass(frozen=True)
class Order:
  """One call of generation, as plain values.

  Attributes:
    order_id: counts the learner's orders; results come back in this order.
    weight_version: the least version of the weights that may sample it.
    seed, stream: the key of the call is `fold_in(key(seed), stream)`; training and evaluation draw
      from different streams.
    prompts: token ids of each prompt.
    group_ids: one per prompt.
    settings: how to sample.
    plan: (from token, version) pairs, ascending, from token 0: exactly these weights sample it.
      Empty: the newest there are.
  """

  order_id: int
  weight_version: int
  seed: int
  stream: int
  prompts: Sequence[TokenIds]
  group_ids: Sequence[int]
  settings: Settings
  plan: Plan = ()


@dataclasses.dataclass
class Result:
  """What an order produced.

  Attributes:
    order_id: of the order.
    rollouts: prompt-major; their weight versions say what really sampled each token.
    sample_s: seconds from the first work on it to its end.
    wait_s: seconds the worker had nothing to do before it began this order.
    weights_s: seconds spent on receiving weights for it.
    worker: index of the worker, set by the pool.
  """

  order_id: int
  rollouts: list[Rollout]
  sample_s: float
  wait_s: float = 0.0
  weights_s: float = 0.0
  worker: int = 0


@dataclasses.dataclass(frozen=True)
class WorkerSettings:
  """How a worker computes; plain values that travel as JSON.

  Attributes:
    dtype: "float32" or "bfloat16"; what the weights are cast to on arrival.
  """

  dtype: str = "float32"


class WeightChannel(Protocol):
  """Where a worker finds weights by version."""

  def newest(self) -> int:
    """The newest version there is, cheaply; -1 before the first."""
    ...

  def read(self, version: int, timeout_s: float, exact: bool) -> tuple[int, Params]:
    """Weights and their version: `version` itself, or the newest once that is not older.

    What is returned is whole, verified and the caller's own. Raises TimeoutError if it does not
    come; LookupError if it cannot, since `version` itself is wanted and no longer kept.
    """
    ...


class Worker:
  """Samples orders one after another. One thread calls it.

  Args:
    spec: of the policy.
    settings: how to compute.
    weights: where to find weights.
    decode: token ids -> text.
  """

  def __init__(
    self,
    spec: ModelSpec,
    settings: WorkerSettings,
    weights: WeightChannel,
    decode: Callable[[Sequence[int]], str] | None = None,
  ):
    self._spec, self._dtype, self._weights = spec, jnp.dtype(settings.dtype), weights
    self._orders: collections.deque[Order] = collections.deque()
    self._params: Params = {}
    self._version = -1
    self._idle_since = time.perf_counter()

  def accept(self, order: Order) -> None:
    """Queues an order."""
    self._orders.append(order)

  @property
  def idle(self) -> bool:
    """Whether nothing is queued."""
    return not self._orders

  def tick(self) -> list[Result]:
    """Samples the oldest order whole. Raises TimeoutError if its weights do not come."""
    if not self._orders:
      return []
    order = self._orders.popleft()
    began = time.perf_counter()
    exact = bool(order.plan)
    wanted = order.plan[0][1] if exact else max(order.weight_version, self._weights.newest())
    if wanted != self._version:
      version, params = self._weights.read(wanted, WEIGHTS_TIMEOUT_S, exact)
      self._params = jax.tree.map(lambda leaf: jnp.asarray(leaf, self._dtype), params)
      self._version = version
    weights_s = time.perf_counter() - began
    key = jax.random.fold_in(jax.random.key(order.seed), order.stream)
    rollouts = generate(
      self._params,
      self._spec,
      order.prompts,
      key,
      order.settings,
      group_ids=order.group_ids,
      weight_version=self._version,
    )
    ended = time.perf_counter()
    wait_s, self._idle_since = began - self._idle_since, ended
    return [Result(order.order_id, rollouts, ended - began, wait_s, weights_s)]
