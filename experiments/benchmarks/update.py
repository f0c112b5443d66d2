"""The update: forward, backward and AdamW, against the machine's matrix products."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

import numpy as np

from experiments.benchmarks import machine
from experiments.benchmarks.workload import Workload, linear_shapes
from vespo_jax.types import TrainBatch


def measure(workload: Workload, repetitions: int) -> dict[str, Any]:
  """Seconds of the updates of a step, of those where every second group has equal rewards and so no
  advantage, and of the linear layers' products at their shapes."""
  spec = workload.spec
  state, update = workload.make_update()
  batch = workload.make_batch()
  equal_P1 = (np.arange(len(batch.rewards_PR)) % 2 == 0)[:, None]
  half = dataclasses.replace(batch, rewards_PR=np.where(equal_P1, 1.0, batch.rewards_PR))

  def step(batch: TrainBatch):
    nonlocal state
    for _ in range(workload.minibatches):
      state, metrics = update(state, batch)
    return metrics["objective/loss"]

  tokens = workload.computed_tokens // (workload.minibatches * workload.micro_batches)
  kernels = linear_shapes(spec) * spec.layers
  shapes = machine.linear_products(tokens, kernels, backward=True)
  updates = {"update_s": lambda: step(batch), "update_half_s": lambda: step(half)}
  times = machine.interleaved({**updates, **machine.products(shapes)}, repetitions)
  return {
    **times,
    "products_gflop": machine.product_flops(shapes) / 1e9,
    "gflop": workload.update_flops / 1e9,
  }


def describe(results: dict[str, Any], workload: Workload) -> str:
  """Tokens per second, and the share of the limit."""
  seconds = statistics.median(results["update_s"])
  half = statistics.median(results["update_half_s"])
  return "\n".join(
    [
      f"update: {machine.spread(results['update_s'])}, "
      f"{workload.computed_tokens / seconds:,.0f} tok/s, {results['gflop']:.0f} useful GFLOP",
      machine.share(results["gflop"], seconds, results, results["products_gflop"]),
      f"  half of the groups without an advantage: {machine.spread(results['update_half_s'])}, "
      f"{half / seconds:.2f} of that",
    ]
  )
