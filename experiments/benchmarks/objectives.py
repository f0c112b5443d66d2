"""The arithmetic of every objective, loss and gradient, against the update that it is part of."""

from __future__ import annotations

import statistics
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks import machine
from experiments.benchmarks.workload import Workload
from vespo_jax import objectives

SEQUENCES, TOKENS = 512, 4096
UPDATE = "update"


def measure(workload: Workload, repetitions: int) -> dict[str, Any]:
  """Seconds of one call of each objective on 512 x 4096 tokens, and of the workload's update."""
  keys = jax.random.split(jax.random.key(0), 3)
  shape = (SEQUENCES, TOKENS)
  behaviour = -jnp.abs(jax.random.normal(keys[0], shape))
  policy = behaviour + 1e-3 * jax.random.normal(keys[1], shape)
  advantages = jax.random.normal(keys[2], (SEQUENCES,))
  mask = jnp.ones(shape, bool)

  def task(name: str):
    objective = objectives.make(name)

    def loss(policy):
      return objectives.policy_loss(
        objective,
        policy_logprobs=policy,
        behaviour_logprobs=behaviour,
        advantages=advantages,
        mask=mask,
      )[0]

    compiled = jax.jit(jax.value_and_grad(loss))
    return lambda: compiled(policy)

  state, update = workload.make_update()
  batch = workload.make_batch()

  def step():
    nonlocal state
    state, metrics = update(state, batch)
    return metrics["objective/loss"]

  tasks = {name: task(name) for name in objectives.names()}
  return machine.interleaved({**tasks, UPDATE: step}, repetitions)


def describe(results: dict[str, Any], workload: Workload) -> str:
  """Microseconds of each, slowest first, and its share of an update of as many tokens."""
  per_token = statistics.median(results[UPDATE]) * workload.minibatches / workload.computed_tokens
  update = per_token * SEQUENCES * TOKENS
  middle = {name: statistics.median(times) for name, times in results.items() if name != UPDATE}
  lines = [
    f"{name}: {seconds * 1e6:,.0f} us, {seconds / update:.2%} of an update"
    for name, seconds in sorted(middle.items(), key=lambda item: -item[1])
  ]
  return "\n".join([*lines, f"an update of {SEQUENCES} x {TOKENS} tokens: {update:.0f} s"])
