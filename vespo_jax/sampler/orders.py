"""What a worker is asked, what it answers, and where it finds weights: plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from vespo_jax import models
from vespo_jax.models import quantize
from vespo_jax.sampler import placement
from vespo_jax.sampler.settings import Settings
from vespo_jax.types import Params, Plan, Rollout, TokenIds

PARTIAL_ROLLOUTS = ("off", "keep_cache", "recompute_cache")


@dataclasses.dataclass(frozen=True)
class Order:
  """Some prompts to sample.

  Attributes:
    order_id: counts the learner's orders.
    weight_version: the least version of the weights that may sample it.
    seed, stream: the key of the order is `fold_in(key(seed), stream)`; training and evaluation draw
      from different streams.
    prompts: token ids of each prompt.
    group_ids: one per prompt.
    settings: how to sample.
    plan: (from token, version) pairs, ascending, the first from token 0: exactly these weights
      sample the tokens of every response from there on. Empty: the newest weights there are.
    longest_prompt: tokens of the longest prompt that there is to be room for beside these: what is
      computed differs in its last bits with the room. 0: as much as the worker has given so far.
    noisy: whether the worker's `weight_noise` is on them: evaluations are of the policy without.
  """

  order_id: int
  weight_version: int
  seed: int
  stream: int
  prompts: Sequence[TokenIds]
  group_ids: Sequence[int]
  settings: Settings
  plan: Plan = ()
  longest_prompt: int = 0
  noisy: bool = True

  def __post_init__(self):
    plan = tuple((int(start), int(version)) for start, version in self.plan)
    object.__setattr__(self, "plan", plan)
    starts = [start for start, _ in plan]
    if plan and (starts[0] != 0 or sorted(set(starts)) != starts):
      raise ValueError(f"order {self.order_id}: its plan {plan} must ascend from token 0")


@dataclasses.dataclass
class Result:
  """What an order produced.

  Attributes:
    order_id: of the order.
    rollouts: prompt-major; their weight versions say what really sampled each token.
    sample_s: seconds from the first work on it to its end; other orders may share them.
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
    dtype: one of `quantize.DTYPES`; what the weights are cast to on arrival.
    slots: sequences sampled together; 0: as many as the first order has.
    partial_rollouts: what becomes of running sequences when newer weights come: `off`, orders that
      have begun are finished by the weights that began them; `keep_cache`, they go on under the new
      weights with the keys and values they have; `recompute_cache`, after these are computed anew.
    weight_noise: relative size of normal noise on the weights; 0 is none.
    chunk: most decode steps of one tick.
    timeout_s: seconds an order waits for weights that have been published.
    attention: one of `models.DECODE_ATTENTION`, what attends to the cache.
    tensor: devices of its process that it spreads the model over, see `placement`.

  Raises:
    ValueError: naming the field that is out of range.
  """

  dtype: str = "float32"
  slots: int = 0
  partial_rollouts: str = "off"
  weight_noise: float = 0.0
  chunk: int = 32
  timeout_s: float = 600.0
  attention: str = "dense"
  tensor: int = 1

  def __post_init__(self):
    for field, good in (
      ("dtype", self.dtype in quantize.DTYPES),
      ("slots", self.slots >= 0),
      ("partial_rollouts", self.partial_rollouts in PARTIAL_ROLLOUTS),
      ("weight_noise", self.weight_noise >= 0),
      ("chunk", self.chunk >= 1),
      ("timeout_s", self.timeout_s > 0),
      ("attention", self.attention in models.DECODE_ATTENTION),
      ("tensor", self.tensor in placement.TENSOR),
    ):
      if not good:
        raise ValueError(f"worker setting {field}={getattr(self, field)!r} is out of range")


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
