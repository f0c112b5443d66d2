"""Sampling from the policy: settings, the jitted generation loop, and the records it makes."""

from vespo_jax.sampler.generate import Samples, generate, pad_prompts, sample_batch
from vespo_jax.sampler.settings import Settings
from vespo_jax.sampler.worker import Order, Result, WeightChannel, Worker, WorkerSettings

__all__ = [
  "Order",
  "Result",
  "Samples",
  "Settings",
  "WeightChannel",
  "Worker",
  "WorkerSettings",
  "generate",
  "pad_prompts",
  "sample_batch",
]
