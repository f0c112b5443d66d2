"""The update: forward, backward and AdamW, against the machine's matrix products."""

from __future__ import annotations

import statistics
from typing import Any

from experiments.benchmarks import machine
from experiments.benchmarks.workload import Workload, linear_shapes


def measure(workload: Workload, repetitions: int) -> dict[str, Any]:
  """Seconds of the updates of a step, and of the linear layers' products at their shapes."""
  spec = workload.spec
  state, update = workload.make_update()
  batch = workload.make_batch()

  def step():
    nonlocal state
    for _ in range(workload.minibatches):
      state, metrics = update(state, batch)
    return metrics["objective/loss"]

  tokens = workload.computed_tokens // (workload.minibatches * workload.micro_batches)
  kernels = linear_shapes(spec) * spec.layers
  shapes = machine.linear_products(tokens, kernels, backward=True)
  times = machine.interleaved({"update_s": step, **machine.products(shapes)}, repetitions)
  return {
    **times,
    "products_gflop": machine.product_flops(shapes) / 1e9,
    "gflop": workload.update_flops / 1e9,
  }


def describe(results: dict[str, Any], workload: Workload) -> str:
  """Tokens per second, and the share of the limit."""
  seconds = statistics.median(results["update_s"])
  return "\n".join(
    [
      f"update: {machine.spread(results['update_s'])}, "
      f"{workload.computed_tokens / seconds:,.0f} tok/s, {results['gflop']:.0f} useful GFLOP",
      machine.share(results["gflop"], seconds, results, results["products_gflop"]),
    ]
  )
