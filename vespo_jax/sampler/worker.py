"""The sampler's whole state: one set of weights and its version. It knows no channel."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import jax

from vespo_jax.models import ModelSpec, quantize
from vespo_jax.sampler.generate import generate
from vespo_jax.sampler.settings import Settings
from vespo_jax.types import Params, Rollout, TokenIds


@dataclasses.dataclass(frozen=True)
class Order:
  """One call of generation, as plain values.

  Attributes:
    order_id: counts the learner's orders; results come back in this order.
    weight_version: the version of the weights that must sample.
    seed, stream: the key of the call is `fold_in(key(seed), stream)`; training and evaluation draw
      from different streams.
    prompts: token ids of each prompt.
    group_ids: one per prompt.
    settings: how to sample.
  """

  order_id: int
  weight_version: int
  seed: int
  stream: int
  prompts: Sequence[TokenIds]
  group_ids: Sequence[int]
  settings: Settings


@dataclasses.dataclass
class Result:
  """What an order produced: the rollouts, prompt-major, and the seconds it took."""

  order_id: int
  rollouts: list[Rollout]
  sample_s: float


class Worker:
  """Samples with the weights it was last given, in its own compute type.

  Args:
    spec: of the policy.
    dtype: one of `quantize.DTYPES`; what the weights are cast to on arrival.
  """

  def __init__(self, spec: ModelSpec, dtype: str):
    self._spec, self._dtype = spec, dtype
    self._params: Params = {}
    self.weight_version = -1

  def set_weights(self, version: int, params: Params) -> None:
    """Takes over a whole set of weights; the caller must not change the arrays afterwards."""
    self._params = quantize.cast(params, self._dtype)
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
