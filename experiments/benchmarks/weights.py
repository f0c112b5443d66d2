"""Weights from the learner to a sampler through shared memory, against copying as many bytes."""

from __future__ import annotations

import contextlib
import itertools
import statistics
from typing import Any

import jax

from experiments.benchmarks import machine
from experiments.benchmarks.workload import Workload
from vespo_jax.runtime.channels import SharedWeights, WeightLayout

COPIES = 20  # of each task in a repetition


def measure(workload: Workload, repetitions: int) -> dict[str, Any]:
  """Seconds of publishing, of receiving and of one plain copy, and the MB of the weights."""
  spec, params = workload.policy
  params = jax.device_get(params)
  nbytes = WeightLayout(spec).nbytes
  with contextlib.closing(SharedWeights(spec)) as channel:
    versions = itertools.count()
    tasks = {
      "publish_s": lambda: channel.publish(next(versions), params),
      "receive_s": lambda: channel.read(0, 1.0, exact=False),
      "copy_s": machine.copy(nbytes),
    }
    often = {
      name: lambda task=task: [task() for _ in range(COPIES)] and None
      for name, task in tasks.items()
    }
    times = machine.interleaved(often, repetitions)
  seconds = {name: [x / COPIES for x in values] for name, values in times.items()}
  return {**seconds, "mb": nbytes / 1e6}


def describe(results: dict[str, Any], workload: Workload) -> str:
  """Both directions, in milliseconds and in plain copies."""
  del workload
  copy = statistics.median(results["copy_s"])
  lines = [f"{results['mb']:.1f} MB; a plain copy: {copy * 1e3:.2f} ms"]
  for name in ("publish", "receive"):
    values = [x * 1e3 for x in results[f"{name}_s"]]
    ratio = machine.median_ratio(results[f"{name}_s"], results["copy_s"])
    lines.append(f"{name}: {machine.spread(values, 'ms', 2)}, {ratio:.1f} copies")
  return "\n".join(lines)
