"""Log-probs at a vocabulary of 151,936: in blocks of it, against logits of all of it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks import machine
from experiments.benchmarks.workload import Workload
from vespo_jax.models import chunked_logprobs
from vespo_jax.types import Array

TOKENS, WIDTH, VOCABULARY = 1024, 1024, 151_936  # Qwen3-0.6B's head, a few responses


def _naive(hidden_MD: Array, table_VD: Array, targets_M: Array) -> Array:
  logprobs_MV = jax.nn.log_softmax(hidden_MD @ table_VD.T, axis=-1)
  return jnp.take_along_axis(logprobs_MV, targets_M[:, None], axis=-1)[:, 0]


def _chunked(hidden_MD: Array, table_VD: Array, targets_M: Array) -> Array:
  return chunked_logprobs(hidden_MD, table_VD, targets_M)[0]


def measure(workload: Workload, repetitions: int) -> dict[str, Any]:
  """Seconds of log-probs with their gradients both ways, and MB of the programs' temporaries."""
  del workload  # the vocabulary is the point
  keys = jax.random.split(jax.random.key(0), 4)
  arguments = (
    jax.random.normal(keys[0], (TOKENS, WIDTH)),
    jax.random.normal(keys[1], (VOCABULARY, WIDTH)) * 0.02,
    jax.random.randint(keys[2], (TOKENS,), 0, VOCABULARY),
  )
  weights_M = jax.random.normal(keys[3], (TOKENS,))
  tasks, results = {}, {}
  for name, logprobs in (("chunked", _chunked), ("naive", _naive)):
    loss = lambda h, t, y, logprobs=logprobs: jnp.sum(weights_M * logprobs(h, t, y))
    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*arguments).compile()
    tasks[f"{name}_s"] = lambda compiled=compiled: compiled(*arguments)
    results[f"{name}_mb"] = compiled.memory_analysis().temp_size_in_bytes / 1e6
  return results | machine.interleaved(tasks, repetitions)


def describe(results: dict[str, Any], workload: Workload) -> str:
  """Both ways, and their ratios."""
  del workload
  lines = [
    f"{name}: {machine.spread(results[f'{name}_s'])}, {results[f'{name}_mb']:,.0f} MB temporary"
    for name in ("chunked", "naive")
  ]
  time = machine.median_ratio(results["chunked_s"], results["naive_s"])
  return "\n".join(
    [*lines, f"{time:.2f}x the time, 1/{results['naive_mb'] / results['chunked_mb']:.0f} of memory"]
  )
