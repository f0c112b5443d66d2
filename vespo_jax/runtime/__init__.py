"""Schedules, the channels between learner and samplers, and starting them."""

from __future__ import annotations

from collections.abc import Mapping

from vespo_jax.models import ModelSpec
from vespo_jax.runtime.channels import RolloutChannel, SharedWeights, WeightChannel
from vespo_jax.runtime.local import LocalSampler, SamplerFailed
from vespo_jax.runtime.schedule import Schedule
from vespo_jax.runtime.threads import ThreadSampler

Sampler = LocalSampler | ThreadSampler


def start_sampler(
  transport: str, spec: ModelSpec, dtype: str, *, env: Mapping[str, str] | None = None
) -> Sampler:
  """Starts the sampler of `transport`: "local" (its own process) or "threads".

  `env` is for the process of "local". Raises ValueError for another transport.
  """
  if transport == "local":
    return LocalSampler(spec, dtype, env=env)
  if transport == "threads":
    return ThreadSampler(spec, dtype)
  raise ValueError(f"unknown transport {transport!r}; known: local, threads")


__all__ = [
  "LocalSampler",
  "RolloutChannel",
  "Sampler",
  "SamplerFailed",
  "SharedWeights",
  "Schedule",
  "ThreadSampler",
  "WeightChannel",
  "start_sampler",
]
