"""The real update and the real decode step, compiled ahead of time for devices that are not here.

Arguments are abstract (`jax.ShapeDtypeStruct`), so no parameter is ever allocated. The devices are
fake ones of the CPU (`--xla_force_host_platform_device_count`), or those of a TPU slice that the
TPU's own compiler (the package `libtpu`) describes: it needs no TPU to compile for one.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from ml_collections import FrozenConfigDict

from vespo_jax import models, sharding, training
from vespo_jax.learner.update import first_skips, init_state, jit_update
from vespo_jax.models import ModelSpec
from vespo_jax.models.cached_attention import PAGE
from vespo_jax.sampler import Settings, placement
from vespo_jax.sampler import decode as device
from vespo_jax.types import TrainBatch, TrainState

PROMPT_WIDTH = 1024  # of the longest prompt, where the config does not bound them: the paper's


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A program of one device, as a compiler left it.

  Attributes:
    text: of the optimised HLO.
    argument_bytes, temporary_bytes, output_bytes: of one device, by the compiler.
    aliased_bytes: of the arguments that outputs take the place of.
    lower_s, compile_s: seconds of tracing and lowering, and of compiling.
    cpu_s: of all this process's threads in both, which other work on the machine does not change.
  """

  text: str
  argument_bytes: int
  temporary_bytes: int
  output_bytes: int
  aliased_bytes: int
  lower_s: float
  compile_s: float
  cpu_s: float

  @property
  def peak_bytes(self) -> int:
    """Bytes of one device while the program runs."""
    new = max(self.output_bytes - self.aliased_bytes, 0)
    return self.argument_bytes + self.temporary_bytes + new


class DoesNotFit(Exception):
  """The compiler for the device found no room for a program; `needed` bytes if it said how many."""

  def __init__(self, message: str):
    super().__init__(message)
    found = re.search(r"([0-9.]+)([KMGT]) *\) exceeds|[Uu]sed ([0-9.]+)([KMGT]) of", message)
    self.needed: float | None = None
    if found:
      size, unit = (x for x in found.groups() if x)
      self.needed = float(size) * 1024 ** ("KMGT".index(unit) + 1)


def fake_mesh(sizes: Mapping[str, int]) -> Mesh:
  """A mesh of fake CPU devices, the first of those there are."""
  return _mesh(sizes, jax.devices("cpu"))


def tpu_mesh(sizes: Mapping[str, int], topology: str) -> Mesh:
  """A mesh of the chips of a TPU slice, like `v5p:4x4x4`, that are not here; needs `libtpu`."""
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else it asks a server for a machine's name
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")
  return _mesh(sizes, topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)


def _mesh(sizes: Mapping[str, int], devices: Sequence[Any]) -> Mesh:
  shape = [sizes.get(axis, 1) for axis in sharding.MESH_AXES]
  return Mesh(
    np.array(devices[: math.prod(shape)]).reshape(shape),
    sharding.MESH_AXES,
    axis_types=(AxisType.Auto,) * len(sharding.MESH_AXES),
  )


def abstract_batch(config: FrozenConfigDict, spec: ModelSpec, prompt_width: int) -> TrainBatch:
  """A whole minibatch of the config, responses as wide as they may get."""
  loss = training.loss_settings(config)
  P_, R, T, S = (
    config.batch.prompts,
    config.batch.samples_per_prompt,
    config.sampler.max_new_tokens,
    prompt_width,
  )
  of = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype)
  per_token = of(jnp.float32, P_, R, T)
  ids = of(jnp.uint8 if spec.experts <= 256 else jnp.uint16, P_, S + R * T, spec.layers)
  fields: dict[str, Any] = {
    "prompt_tokens_PS": of(jnp.int32, P_, S),
    "prompt_mask_PS": of(jnp.bool_, P_, S),
    "response_tokens_PRT": of(jnp.int32, P_, R, T),
    "response_mask_PRT": of(jnp.bool_, P_, R, T),
    "behaviour_logprobs_PRT": per_token,
    "rewards_PR": of(jnp.float32, P_, R),
    "fresh_mask_PRT": of(jnp.bool_, P_, R, T),
  }
  if loss.needs_proximal:
    fields["proximal_logprobs_PRT"] = per_token
  if loss.needs_reference:
    fields["reference_logprobs_PRT"] = per_token
  if loss.replay != "off":
    fields["expert_ids_PJLA"] = of(ids.dtype, *ids.shape, spec.active_experts)
  return TrainBatch(**fields)


def abstract_state(config: FrozenConfigDict, spec: ModelSpec) -> TrainState:
  """The learner's state before the first update: float32 parameters, and the optimizer's."""
  optimizer = training.make_step(config, spec).optimizer
  return jax.eval_shape(lambda params: init_state(params, optimizer), models.abstract(spec))


def compile_update(
  config: FrozenConfigDict, spec: ModelSpec, mesh: Mesh, prompt_width: int = PROMPT_WIDTH
) -> Compiled:
  """The learner's own update on a mesh. Raises DoesNotFit as a TPU's compiler does."""
  step, state = training.make_step(config, spec), abstract_state(config, spec)
  update = jit_update(step.update, mesh, spec, state, step.limits, config.optimizer.offload)
  skips = jax.ShapeDtypeStruct((), first_skips(step.limits).dtype)
  trained = dataclasses.replace(state, frozen=None)
  batch = abstract_batch(config, spec, prompt_width)
  return _compile(lambda: update.lower(trained, state.frozen, batch, skips))


def compile_decode(
  config: FrozenConfigDict, spec: ModelSpec, mesh: Mesh, rows: int, slots: int
) -> Compiled:
  """The sampler's own decode loop on a mesh. Raises DoesNotFit.

  Args:
    rows: sequences, which the mesh's batch axes divide.
    slots: tokens that the cache has room for in each.
  """
  dtype = jnp.bfloat16 if config.sampler.dtype == "bfloat16" else jnp.float32
  settings = Settings(
    max_new_tokens=config.sampler.max_new_tokens, temperature=config.sampler.temperature
  )
  attention = config.sampler.attention
  slots = -(-slots // PAGE) * PAGE
  params = jax.eval_shape(models.unstack, models.abstract(spec, dtype))
  cache = jax.eval_shape(functools.partial(models.init_cache, spec, rows, slots, dtype, attention))
  of = jax.ShapeDtypeStruct
  vector = of((rows,), jnp.int32)
  waiting = device.Rows(
    tokens_B=vector,
    lengths_B=vector,
    counts_B=vector,
    keys_BX=of((rows, 2), jnp.uint32),
    seeds_B=of((rows,), jnp.uint32),
    live_B=of((rows,), jnp.bool_),
    limits_B=vector,
    forced_CB=of((config.sampler.chunk, rows), jnp.int32),
  )

  def placed(tree: Any, specs: Any) -> Any:
    one = lambda axes, leaf: of(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, axes))
    return jax.tree.map(one, specs, tree)

  params = placed(params, placement.unstacked_specs(spec))
  cache = placed(cache, placement.cache_specs(spec, attention))
  return _compile(
    lambda: device.decode.lower(
      params, spec, settings.compiled(), cache, waiting, of((), jnp.int32), mesh
    )
  )


def _compile(lower: Any) -> Compiled:
  started, cpu_started = time.perf_counter(), time.process_time()
  lowered = lower()
  lowered_at = time.perf_counter()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    raise DoesNotFit(str(error)) from error
  memory = compiled.memory_analysis()
  return Compiled(
    compiled.as_text(),
    memory.argument_size_in_bytes,
    memory.temp_size_in_bytes,
    memory.output_size_in_bytes,
    memory.alias_size_in_bytes,
    lowered_at - started,
    time.perf_counter() - lowered_at,
    time.process_time() - cpu_started,
  )
