"""A config -> the parts of a run, each made where its room says, and put together in `launch`."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import FrozenConfigDict

from vespo_jax import config as config_lib
from vespo_jax import config_policy, config_replay, models, sharding, tasks
from vespo_jax.config import ConfigError
from vespo_jax.config_replay import SAVED
from vespo_jax.evaluation import Evaluator
from vespo_jax.hosts import Hosts
from vespo_jax.learner.checkpoint import RunState
from vespo_jax.learner.groups import Refill
from vespo_jax.learner.guard import Guard
from vespo_jax.learner.intake import Intake, ProblemSet
from vespo_jax.learner.integrity import Monitor, Thresholds
from vespo_jax.learner.saved import Origin, SavedRollouts, vocabulary_digest
from vespo_jax.learner.saved_intake import SavedIntake
from vespo_jax.models import ModelSpec, partition
from vespo_jax.problem_sets import make_stream
from vespo_jax.runtime import (
  FailureSettings,
  Fleet,
  Place,
  PublishedPieces,
  RaySettings,
  Sampler,
  Schedule,
  WorkerSettings,
  start_sampler,
)
from vespo_jax.sampler import Settings
from vespo_jax.tokenizers import Tokenizer, byte_tokenizer
from vespo_jax.types import Params
from vespo_jax.weights.wire import Wire

GPU_MEMORY_VARIABLE = "XLA_CLIENT_MEM_FRACTION"  # read when JAX starts its backend


def load_policy(
  config: FrozenConfigDict, mesh: Mesh | None = None
) -> tuple[ModelSpec, Params, Tokenizer]:
  """The configured policy: read from `policy.path`, or random weights of the configured sizes; laid
  out over `mesh`, or whole on one device.

  Raises ConfigError if the model there cannot be read, or does not divide over the mesh.
  """
  spec, path = config_policy.make_spec(config), config.policy.path
  shardings = None if mesh is None else param_shardings(mesh, spec)
  if path:
    try:
      return models.load(path, shardings=shardings)
    except (OSError, ValueError) as error:
      raise ConfigError(f"policy.path={path!r}: {error}") from error
  params = models.init(spec, jax.random.key(config.seed))
  return spec, sharding.place(params, shardings) if shardings else params, byte_tokenizer()


def param_shardings(mesh: Mesh, spec: ModelSpec) -> Params:
  """`sharding.param_shardings`. Raises ConfigError if the policy does not divide over the mesh."""
  try:
    return sharding.param_shardings(mesh, spec)
  except ValueError as error:
    raise ConfigError(f"mesh: {error}") from error


def sampler_settings(config: FrozenConfigDict, tokenizer: Tokenizer, **changes: Any) -> Settings:
  """How the run samples; `changes` override fields."""
  settings = Settings(
    max_new_tokens=config.sampler.max_new_tokens,
    temperature=config.sampler.temperature,
    samples_per_prompt=config.batch.samples_per_prompt,
    stop_ids=tokenizer.stop_ids,
    stop_strings=tuple(config.sampler.stop_strings),
    top_k=config.sampler.top_k,
    top_p=config.sampler.top_p,
    min_p=config.sampler.min_p,
  )
  return dataclasses.replace(settings, **changes)


def make_evaluator(config: FrozenConfigDict, held_out: ProblemSet) -> Evaluator:
  """The configured evaluation on held-out problems, temperature 1, no truncation; where fewer are
  held out than it wants, all are asked."""
  samples = config.evaluation.samples_per_problem
  return Evaluator(
    held_out,
    min(config.evaluation.problems, len(held_out.examples)),
    sampler_settings(
      config,
      held_out.tokenizer,
      temperature=1.0,
      top_k=0,
      top_p=1.0,
      min_p=0.0,
      samples_per_prompt=samples,
    ),
    seed=config.seed,
    timeout_s=config.runtime.timeout_s,
    prompts_per_order=max(config.batch.prompts * config.batch.samples_per_prompt // samples, 1),
    ahead=config.sampler.processes + 1,
  )


def open_pieces(
  config: FrozenConfigDict, mesh: Mesh, spec: ModelSpec, workdir: Path, hosts: Hosts
) -> PublishedPieces | None:
  """Where weights are published in pieces, emptied; None where they are published whole.

  Raises ConfigError if the policy does not divide over the mesh.
  """
  if config.runtime.weights == "whole":
    return None
  how = config.runtime.pieces
  wire = Wire(how.dtype, how.compress, int(how.chunk_mb * 2**20))
  place = Place(os.path.abspath(how.directory or workdir / "weights"), wire)
  slots = config_lib.make_schedule(config).versions_kept
  pieces = PublishedPieces(place, spec, param_shardings(mesh, spec), slots)
  hosts.tell(pieces.clear)  # no one goes on before the first process has
  return pieces


def open_sampler(
  config: FrozenConfigDict,
  spec: ModelSpec,
  tokenizer: Tokenizer,
  stack: contextlib.ExitStack,
  hosts: Hosts,
  pieces: PublishedPieces | None = None,
) -> Sampler:
  """The samplers, of which this host has its share; `stack` ends them, and nobody waits for them
  once a host is stopping. With `pieces`, weights go that way.

  Raises ConfigError if there is not one for each host, or one is to have more devices than there
  are."""
  workers = config.sampler.processes
  sampling = config_lib.replayed(config.sampler.source) is None
  if workers < hosts.count:
    raise ConfigError(
      f"sampler.processes={workers} must be at least {hosts.count}, one for each process of the run"
    )
  mine = len(tasks.share(workers, hosts.index, hosts.count))
  devices = [name for name in config.sampler.devices.split(",") if name]
  if devices and len(devices) != mine * config.sampler.tensor:
    raise ConfigError(
      f"sampler.devices={config.sampler.devices!r} are {len(devices)} devices, for {mine} samplers "
      f"on this host of sampler.tensor={config.sampler.tensor} each"
    )
  transport = config.runtime.transport if sampling else "threads"  # then it only evaluates
  if transport != "ray" and not devices and config.sampler.tensor > jax.local_device_count():
    raise ConfigError(
      f"sampler.tensor={config.sampler.tensor} is more than the {jax.local_device_count()} devices "
      "of this process"
    )
  # each has devices of its own, or a part of one, or all share one part of the learner's
  apart = min(config.runtime.ray.num_gpus or 1.0, 1.0) if transport == "ray" else 1.0
  each = config.runtime.gpu_memory_fraction * apart / (1 if devices or transport == "ray" else mine)
  env = {GPU_MEMORY_VARIABLE: str(each)}
  share = -(-config.batch.prompts // workers)  # of a minibatch's prompts
  sampler = start_sampler(
    transport,
    spec,
    WorkerSettings(
      dtype=config.sampler.dtype,
      slots=config.sampler.slots or share * config.batch.samples_per_prompt,
      partial_rollouts=config.runtime.partial_rollouts,
      chunk=config.sampler.chunk,
      weight_noise=config.sampler.weight_noise,
      timeout_s=config.runtime.timeout_s,
      attention=config.sampler.attention,
      tensor=config.sampler.tensor,
    ),
    workers=mine,
    weight_slots=config_lib.make_schedule(config).versions_kept,
    failures=FailureSettings(
      max_failures=config.runtime.max_failures, hang_timeout_s=config.runtime.hang_timeout_s
    ),
    tokenizer=tokenizer.backend.to_str() if config.sampler.stop_strings else "",
    pieces=pieces,
    env=env,
    devices=devices,
    ray=RaySettings(**config.runtime.ray.to_dict()),
    stop=hosts.stopping,
  )
  stack.callback(sampler.close)
  return sampler if hosts.count == 1 else Fleet(sampler, hosts, workers)


def make_guard(
  config: FrozenConfigDict, sampler: Sampler, monitor: Monitor, say: Callable[[str], None]
) -> Guard:
  """What judges the samplers' rollouts, from `monitor` on, and tells its findings to `say`."""
  whole = not any((config.sampler.top_k, config.sampler.top_p < 1, config.sampler.min_p))
  whole &= not config.batch.dynamic.enabled  # which drops groups by what was sampled
  replayed = config_lib.replayed(config.sampler.source) is not None
  action = "off" if replayed else config.runtime.integrity
  return Guard(sampler, Thresholds(calibrated=whole), action, monitor, say)


def origin(config: FrozenConfigDict, tokenizer: Tokenizer) -> Origin:
  """What must be the same of two runs for one to train on the other's rollouts."""
  return Origin(vocabulary=vocabulary_digest(tokenizer), **config_replay.origin(config))


def make_intake(
  config: FrozenConfigDict,
  sampler: Sampler,
  problems: ProblemSet,
  schedule: Schedule,
  origin: Origin,
  run: RunState,
  spec: ModelSpec,
  longest_prompt: int,
) -> Intake | SavedIntake:
  """Where minibatches come from: the sampler, of which `run` has what it had before a resume, and
  which is asked prompts of up to `longest_prompt` tokens beside, or another run's saved rollouts.

  Raises ConfigError if these are not there, or are not what this run would train on.
  """
  replayed, R3 = config_lib.replayed(config.sampler.source), config.moe.replay == "R3"
  if replayed is None:
    stream, curricula = make_stream(config, problems)
    if curricula is not None and run.rates:
      curricula.restore(run.rates)
    dynamic = config.batch.dynamic
    return Intake(
      sampler,
      problems,
      stream,
      schedule,
      sampler_settings(config, problems.tokenizer, expert_ids=R3),
      seed=config.seed,
      updates=config.updates,
      timeout_s=config.runtime.timeout_s,
      parts=config.sampler.processes,
      refill=Refill(dynamic.max_rounds, dynamic.oversampling) if dynamic.enabled else None,
      curricula=curricula,
      longest_prompt=longest_prompt,
      finished=run.samplers.results,
      saved=run.prompts,
    )
  experts = (spec.layers, spec.active_experts, spec.experts) if R3 else None
  try:
    saved = SavedRollouts(replayed / SAVED, origin, config.updates, experts)
  except ValueError as error:
    raise ConfigError(f"sampler.source='replay:{replayed}': {error}") from error
  samples, longest = config.batch.samples_per_prompt, config.sampler.max_new_tokens
  return SavedIntake(saved, sampler, problems, samples, longest)


def pick(settings: type, section: FrozenConfigDict) -> Any:
  """`settings` made of the keys of a config section that are its fields."""
  return settings(**{field.name: section[field.name] for field in dataclasses.fields(settings)})


def make_mesh(config: FrozenConfigDict) -> jax.sharding.Mesh:
  """The mesh of the learner's devices. Raises ConfigError if it does not fit them or the batch, or
  they lack the kernels; samplers elsewhere look for themselves."""
  for key, kernels in (("policy", models.ATTENTION), ("sampler", models.DECODE_ATTENTION)):
    if key == "policy" or config.runtime.transport != "ray":
      try:
        models.check_platform(kernels, config[key].attention, jax.default_backend())
      except ValueError as error:
        raise ConfigError(f"{key}.attention={error}") from error
  try:
    mesh = sharding.make_mesh(config.mesh.to_dict())
  except ValueError as error:
    raise ConfigError(str(error)) from error
  devices = partition.devices(mesh)
  piece = config.batch.prompts // config.batch.micro_batches
  if piece % devices:
    raise ConfigError(
      f"a micro-batch of {piece} prompts (batch.prompts / batch.micro_batches) does not divide "
      f"over mesh.data x mesh.fsdp x mesh.expert = {devices} devices"
    )
  return mesh
