"""Schedules, the samplers behind one interface over any transport, and starting them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from vespo_jax.models import ModelSpec
from vespo_jax.runtime.channels import SharedWeights
from vespo_jax.runtime.fleet import Fleet
from vespo_jax.runtime.links import (
  FailureSettings,
  Preempted,
  Sampler,
  SamplersFailed,
  Snapshot,
)
from vespo_jax.runtime.local import LocalTransport
from vespo_jax.runtime.pool import SamplerPool
from vespo_jax.runtime.published import Place, PublishedPieces
from vespo_jax.runtime.ray_cluster import RaySettings, RayTransport
from vespo_jax.runtime.schedule import Schedule
from vespo_jax.runtime.serving import Blueprint
from vespo_jax.runtime.shared_grader import SharedGrader
from vespo_jax.runtime.threads import ThreadTransport
from vespo_jax.sampler import WorkerSettings

TRANSPORTS = ("local", "threads", "ray")


def start_sampler(
  transport: str,
  spec: ModelSpec,
  settings: WorkerSettings | None = None,
  *,
  workers: int = 1,
  weight_slots: int = 2,
  failures: FailureSettings | None = None,
  tokenizer: str = "",
  pieces: PublishedPieces | None = None,
  env: Mapping[str, str] | None = None,
  devices: Sequence[str] = (),
  ray: RaySettings | None = None,
  stop: Callable[[], bool] = lambda: False,
) -> SamplerPool:
  """Starts the workers of a `Sampler` and the thread that looks after them.

  Args:
    transport: "local", processes on this machine; "threads", in this process; "ray", a cluster.
    spec: of the policy.
    settings: how each worker computes.
    workers: how many, k.
    weight_slots: versions of the weights kept, at least 2; more where orders have a plan.
    failures: when a worker has failed, and how many failures end the run.
    tokenizer: JSON of the `tokenizers` library, where the sampler's settings have stop strings.
    pieces: to publish weights through a directory, piece by piece; None: whole, by the transport.
    env: environment variables of the workers' processes ("local" and "ray").
    devices: ids of the GPUs that workers see, shared out in turn ("local"); none: all there are.
    ray: which cluster, and what each worker takes of it ("ray").
    stop: asked while a result is waited for; True ends the waiting.

  Raises ValueError for another transport; ImportError for "ray" where it is not installed.
  """
  place = None if pieces is None else pieces.place
  blueprint = Blueprint(spec, settings or WorkerSettings(), tokenizer, place)
  if transport == "local":
    chosen = LocalTransport(blueprint, weight_slots, pieces, env, devices)
  elif transport == "threads":
    chosen = ThreadTransport(blueprint, weight_slots, pieces)
  elif transport == "ray":
    chosen = RayTransport(blueprint, weight_slots, ray or RaySettings(), env, pieces)
  else:
    raise ValueError(f"unknown transport {transport!r}; known: {', '.join(TRANSPORTS)}")
  pool = SamplerPool(chosen, workers, spec.vocab_size, failures or FailureSettings(), stop=stop)
  pool.watch()
  return pool


__all__ = [
  "TRANSPORTS",
  "FailureSettings",
  "Fleet",
  "Place",
  "Preempted",
  "PublishedPieces",
  "RaySettings",
  "Sampler",
  "SamplerPool",
  "SamplersFailed",
  "SharedWeights",
  "Schedule",
  "SharedGrader",
  "Snapshot",
  "WorkerSettings",
  "start_sampler",
]
