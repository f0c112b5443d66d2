"""Sampling from the policy: settings, the engine, whole batches, and the worker on top of it."""

from vespo_jax.sampler.engine import Engine
from vespo_jax.sampler.generate import generate, pad_prompts, score
from vespo_jax.sampler.orders import (
  PARTIAL_ROLLOUTS,
  Order,
  Result,
  WeightChannel,
  WorkerSettings,
)
from vespo_jax.sampler.settings import Settings
from vespo_jax.sampler.worker import Worker

__all__ = [
  "PARTIAL_ROLLOUTS",
  "Engine",
  "Order",
  "Result",
  "Settings",
  "WeightChannel",
  "Worker",
  "WorkerSettings",
  "generate",
  "pad_prompts",
  "score",
]
