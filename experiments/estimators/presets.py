"""The sizes of a run: `smoke` for the test, `cpu` for the result."""

from __future__ import annotations

import dataclasses

from vespo_jax.models import ModelSpec


@dataclasses.dataclass(frozen=True)
class Preset:
  """One run of the lab.

  Attributes:
    vocab_size, max_length: of the task, V and T.
    width: of the one-layer policy.
    seeds: one world each: initial weights, drift direction, noise, Monte Carlo draws.
    start_reward: the behaviour policy is ascended from random weights to this expected reward.
    learning_rate: of Adam on the exact gradient.
    staleness: updates between behaviour and policy, ascending.
    drift: standard deviations of a random change of every parameter.
    noise: standard deviations of noise on the behaviour policy's logits.
    rounding: how the behaviour policy is rounded; see `engines.ROUNDINGS`.
    lengths: maximum lengths, at the same drift per token.
    drift_per_token: that drift, as KL(behaviour || policy) in nats per token.
    group_size, groups: of a batch; n is their product.
    batches: Monte Carlo batches of each estimate.
  """

  vocab_size: int = 3
  max_length: int = 10
  width: int = 16
  seeds: tuple[int, ...] = (0, 1, 2)
  start_reward: float = 0.15
  learning_rate: float = 3e-4
  staleness: tuple[int, ...] = (0, 1, 2, 4, 8, 16, 32, 64)
  drift: tuple[float, ...] = (0.0, 0.01, 0.02, 0.04, 0.08, 0.16)
  noise: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)
  rounding: tuple[str, ...] = ("bfloat16", "int8", "int4")
  lengths: tuple[int, ...] = (2, 4, 6, 8, 10, 12)
  drift_per_token: float = 0.06
  group_size: int = 8
  groups: int = 8
  batches: int = 400

  @property
  def batch_size(self) -> int:
    """Sequences of a batch, n."""
    return self.group_size * self.groups

  @property
  def spec(self) -> ModelSpec:
    """The policy's architecture."""
    return ModelSpec(
      vocab_size=self.vocab_size,
      width=self.width,
      layers=1,
      heads=2,
      kv_heads=2,
      head_width=self.width // 2,
      mlp_width=2 * self.width,
    )


PRESETS = {
  "smoke": Preset(
    max_length=4,
    width=8,
    seeds=(0,),
    staleness=(0, 4),
    drift=(0.02,),
    noise=(0.2,),
    rounding=("int8",),
    lengths=(4,),
    groups=2,
    group_size=4,
    batches=40,
  ),
  "cpu": Preset(),
}
