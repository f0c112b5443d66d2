"""Sampling by the engine: prefill, then decoding, against the machine's matrix products."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from typing import Any

import jax

from experiments.benchmarks import machine
from experiments.benchmarks.workload import Workload, linear_shapes
from vespo_jax.sampler import generate


def measure(workload: Workload, repetitions: int) -> dict[str, Any]:
  """Seconds of sampling all responses, and one token of each; the useful GFLOP, and the rate of the
  linear layers' products at the batch of a decode step."""
  spec, params = workload.policy
  prompts, settings = workload.make_prompts(), workload.settings
  first = dataclasses.replace(settings, max_new_tokens=1)
  shapes = machine.linear_products(
    workload.sequences, linear_shapes(spec) * spec.layers, backward=False
  )
  shapes.append((workload.sequences, spec.width, spec.vocab_size))
  keys = map(jax.random.key, itertools.count())
  times = machine.interleaved(
    {
      "sample_s": lambda: generate(params, spec, prompts, next(keys), settings),
      "first_token_s": lambda: generate(params, spec, prompts, next(keys), first),
      **machine.products(shapes),
    },
    repetitions,
  )
  gflop = machine.product_flops(shapes) / 1e9
  return {**times, "products_gflop": gflop, "gflop": workload.forward_flops / 1e9}


def describe(results: dict[str, Any], workload: Workload) -> str:
  """Tokens per second of both halves, and the share of the limit."""
  sample, first = (statistics.median(results[name]) for name in ("sample_s", "first_token_s"))
  prompt_tokens = workload.prompts * workload.prompt_tokens
  decoded = workload.sequences * (workload.new_tokens - 1)
  lines = [
    f"sample: {machine.spread(results['sample_s'])}, {workload.sampled_tokens / sample:,.0f} tok/s",
    f"prefill and first token: {machine.spread(results['first_token_s'])}, "
    f"{prompt_tokens / first:,.0f} prompt tok/s",
  ]
  if decoded:
    lines.append(f"decode: {decoded / max(sample - first, 1e-9):,.0f} tok/s")
  return "\n".join(
    [
      *lines,
      machine.share(results["gflop"], sample, results, results["products_gflop"]),
    ]
  )
