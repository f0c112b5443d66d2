"""The sampler's whole state: one set of weights and its version. It knows no channel."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from vespo_jax.models import ModelSpec
from vespo_jax.sampler.generate import generate
from vespo_jax.sampler.settings import Settings
from vespo_jax.types import Params, Plan, Rollout, TokenIds


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
    plan: which version samples which token; () takes the newest weights there are.
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
    rollouts: prompt-major; their `weight_versions` say what really sampled each token.
    sample_s: seconds from the first work on it to its end.
    wait_s: seconds the sampler had nothing to do before it began.
    weights_s: seconds spent receiving weights for it.
    worker: the index of the sampler.
  """

  order_id: int
  rollouts: list[Rollout]
  sample_s: float
  wait_s: float = 0.0
  weights_s: float = 0.0
  worker: int = 0


class Worker:
  """Samples with the weights it was last given, in its own compute type.

  Args:
    spec: of the policy.
    dtype: "float32" or "bfloat16"; what the weights are cast to on arrival.
  """

  def __init__(self, spec: ModelSpec, dtype: str):
    self._spec, self._dtype = spec, jnp.dtype(dtype)
    self._params: Params = {}
    self.weight_version = -1

  def set_weights(self, version: int, params: Params) -> None:
    """Takes over a whole set of weights; the caller must not change the arrays afterwards."""
    self._params = jax.tree.map(lambda leaf: jnp.asarray(leaf, self._dtype), params)
    self.weight_version = version

  def run(self, order: Order) -> Result:
    """Samples the order. Raises RuntimeError if it asks for weights this worker does not hold."""
    if order.weight_version != self.weight_version:
      raise RuntimeError(
        f"order {order.order_id} needs weight version {order.weight_version}, "
        f"the sampler holds {self.weight_version}"
      )
    started = time.perf_counter()
    rollouts = generate(
      self._params,
      self._spec,
      order.prompts,
      jax.random.fold_in(jax.random.key(order.seed), order.stream),
      order.settings,
      group_ids=order.group_ids,
      weight_version=self.weight_version,
    )
    return Result(order.order_id, rollouts, time.perf_counter() - started)
