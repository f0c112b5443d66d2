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
from jax.sharding import PartitionSpec as P
from ml_collections import FrozenConfigDict

from vespo_jax import models, sharding, training
from vespo_jax.learner.update import first_skips, init_state, jit_update
from vespo_jax.models import ModelSpec
from vespo_jax.models.partition import BATCH_AXES, RULES
from vespo_jax.sampler import Settings
from vespo_jax.sampler import decode as device
from vespo_jax.types import TrainBatch, TrainState

PROMPT_WIDTH = 1024  # tokens of the paper's longest prompt; no config key bounds prompts


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
  update = jit_update(step.update, mesh, spec, state, step.limits)
  skips = jax.ShapeDtypeStruct((), first_skips(step.limits).dtype)
  trained = dataclasses.replace(state, frozen=None)
  batch = abstract_batch(config, spec, prompt_width)
  return _compile(lambda: update.lower(trained, state.frozen, batch, skips))


def compile_decode(
  config: FrozenConfigDict, spec: ModelSpec, mesh: Mesh, rows: int, slots: int
) -> Compiled:
  """The sampler's own decode loop on a mesh, as `jit_decode` spreads it. Raises DoesNotFit.

  Args:
    rows: sequences, which the mesh's batch axes divide.
    slots: tokens that the cache has room for in each.
  """
  dtype = jnp.bfloat16 if config.sampler.dtype == "bfloat16" else jnp.float32
  settings = Settings(
    max_new_tokens=config.sampler.max_new_tokens, temperature=config.sampler.temperature
  )
  params = jax.eval_shape(models.unstack, models.abstract(spec, dtype))
  cache = jax.eval_shape(functools.partial(models.init_cache, spec, rows, slots, dtype))
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
  decode = jit_decode(spec, settings, mesh)
  return _compile(lambda: decode.lower(params, cache, waiting, of((), jnp.int32)))


def jit_decode(spec: ModelSpec, settings: Settings, mesh: Mesh) -> jax.stages.Wrapped:
  """`jit` of `decode(params, cache, rows, enough)`, the sampler's, on a mesh; the cache is donated.

  Rows are spread over the mesh's batch axes, key/value heads of the cache over `tensor`, and
  parameters, whose layers are apart, by the rule table; XLA spreads what is made of them.
  """
  placed = lambda spec_: NamedSharding(mesh, spec_)
  of_rows = placed(P(BATCH_AXES))
  of_layers = (placed(P(BATCH_AXES, "tensor")),) * spec.layers
  cache: Any = models.KVCache(of_layers, of_layers, of_rows)  # shardings in the place of arrays
  rows: Any = device.Rows(
    *(of_rows for _ in dataclasses.fields(device.Rows)[:-1]),
    forced_CB=placed(P(None, BATCH_AXES)),
  )
  return jax.jit(
    lambda params, cache, rows, enough: device.decode(
      params, spec, settings.compiled(), cache, rows, enough
    ),
    in_shardings=(
      jax.tree.map(placed, decode_param_specs(spec)),
      cache,
      rows,
      placed(P()),
    ),
    out_shardings=(cache, None),
    donate_argnums=1,
  )


def decode_param_specs(spec: ModelSpec) -> Any:
  """The rule table for parameters whose layers are apart (`models.unstack`)."""
  infos = models.describe(spec)
  one = lambda info, axes: P(*map(RULES.get, axes))
  layer = {name: one(info, info.axes[1:]) for name, info in infos["layers"].items()}
  rest = {name: one(info, info.axes) for name, info in infos.items() if name != "layers"}
  return {**rest, "layers": (layer,) * spec.layers}


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
