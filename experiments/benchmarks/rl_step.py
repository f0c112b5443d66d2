"""One step as a user has it: sample, reward, update; and the memory of the process that does it."""

from __future__ import annotations

import itertools
import statistics
import time
from typing import Any

import jax

from experiments.benchmarks import machine
from experiments.benchmarks.workload import Workload
from vespo_jax import memory
from vespo_jax.learner.batching import make_batch
from vespo_jax.sampler import generate


def measure(workload: Workload, repetitions: int) -> dict[str, Any]:
  """Seconds of a step and of its halves, and the peak of the process's memory in MB.

  Rewards cost nothing: whether the first sampled token is even.
  """
  memory.return_after_compiling()  # as training does
  spec = workload.spec
  state, update = workload.make_update()
  prompts, keys = workload.make_prompts(), map(jax.random.key, itertools.count())
  halves: dict[str, list[float]] = {"sample_s": [], "update_s": []}
  size = workload.sequences // workload.minibatches

  def step() -> None:
    nonlocal state
    started = time.perf_counter()
    rollouts = generate(state.params, spec, prompts, next(keys), workload.settings)
    sampled = time.perf_counter()
    for rollout in rollouts:
      rollout.reward = float(rollout.response_ids[0] % 2 == 0)
    for i in range(workload.minibatches):
      part = rollouts[i * size : (i + 1) * size]
      batch, _ = make_batch(part, workload.samples, workload.new_tokens, version=0)
      state, metrics = update(state, batch)
    jax.block_until_ready(metrics)
    halves["sample_s"].append(sampled - started)
    halves["update_s"].append(time.perf_counter() - sampled)

  times = machine.interleaved({"rl_step_s": step}, repetitions)
  counted = {name: seconds[1:] for name, seconds in halves.items()}
  return {**counted, **times, "peak_rss_mb": machine.peak_rss_mb()}


def describe(results: dict[str, Any], workload: Workload) -> str:
  """The step, its halves and its memory."""
  seconds = statistics.median(results["rl_step_s"])
  return "\n".join(
    [
      f"step: {machine.spread(results['rl_step_s'])}, "
      f"{workload.sampled_tokens / seconds:,.0f} response tok/s",
      f"sample: {machine.spread(results['sample_s'])}",
      f"reward and update: {machine.spread(results['update_s'])}",
      f"peak resident memory {results['peak_rss_mb']:.0f} MB",
    ]
  )
