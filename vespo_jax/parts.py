"""A config -> the parts of a run, each made where its room says, and put together in `launch`."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from ml_collections import FrozenConfigDict

from vespo_jax import config as config_lib
from vespo_jax import models, sharding, tasks
from vespo_jax.config import ConfigError
from vespo_jax.evaluation import Evaluator
from vespo_jax.learner.guard import Guard
from vespo_jax.learner.intake import Intake, Problems, SavedIntake
from vespo_jax.learner.integrity import Monitor, Thresholds
from vespo_jax.learner.saved import Origin, SavedRollouts, vocabulary_digest
from vespo_jax.models import ModelSpec
from vespo_jax.runtime import (
  FailureSettings,
  RaySettings,
  Sampler,
  Schedule,
  WorkerSettings,
  start_sampler,
)
from vespo_jax.sampler import Result, Settings
from vespo_jax.tokenizers import Tokenizer, byte_tokenizer
from vespo_jax.types import Params

GPU_MEMORY_VARIABLE = "XLA_CLIENT_MEM_FRACTION"  # read when JAX starts its backend
SAVED = "rollouts.parquet"  # in a run directory, all its rollouts


def load_policy(config: FrozenConfigDict) -> tuple[ModelSpec, Params, Tokenizer]:
  """The configured policy: read from `policy.path`, or random weights of the configured sizes.

  Raises ConfigError if the model there cannot be read.
  """
  policy = config.policy
  if policy.path:
    try:
      return models.load(policy.path)
    except (OSError, ValueError) as error:
      raise ConfigError(f"policy.path={policy.path!r}: {error}") from error
  tokenizer = byte_tokenizer()
  spec = ModelSpec(
    vocab_size=tokenizer.vocab_size,
    width=policy.width,
    layers=policy.layers,
    heads=policy.heads,
    kv_heads=policy.kv_heads,
    head_width=policy.head_width,
    mlp_width=policy.mlp_width,
    rope_theta=policy.rope_theta,
    experts=policy.experts,
    active_experts=policy.active_experts,
  )
  return spec, models.init(spec, jax.random.key(config.seed)), tokenizer


def open_problems(
  config: FrozenConfigDict, tokenizer: Tokenizer, stack: contextlib.ExitStack
) -> tuple[Problems, Problems]:
  """The training and the held-out problems, with a grader that `stack` closes.

  Raises ConfigError if the task does not have that many.
  """
  task = config_lib.make_task(config)
  grader = stack.enter_context(tasks.Grader(task, timeout_s=config.task.grade_timeout_s))
  try:
    splits = tasks.open_splits(
      task,
      data_dir=config.task.data_dir,
      seed=config.task.seed,
      train_size=config.task.train_size,
      test_size=config.task.test_size,
    )
  except ValueError as error:  # it names the keys
    raise ConfigError(str(error)) from error
  train_problems = Problems(task, splits.train, tokenizer, grader)
  return train_problems, Problems(task, splits.test, tokenizer, grader)


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


def make_evaluator(
  config: FrozenConfigDict,
  held_out: Problems,
  *,
  problems: int | None = None,
  samples: int | None = None,
) -> Evaluator:
  """The configured evaluation on held-out problems: temperature 1, no truncation.

  `problems` and `samples` override the configured numbers of problems and samples of each.
  """
  samples = samples or config.evaluation.samples_per_problem
  return Evaluator(
    held_out,
    problems or config.evaluation.problems,
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
  )


def open_sampler(
  config: FrozenConfigDict,
  spec: ModelSpec,
  tokenizer: Tokenizer,
  stack: contextlib.ExitStack,
  stop: Callable[[], bool],
) -> Sampler:
  """The samplers, which `stack` ends; nobody waits for them once `stop` says so."""
  each = config.runtime.gpu_memory_fraction / config.sampler.processes  # they share one part
  env = {GPU_MEMORY_VARIABLE: str(each)}
  share = -(-config.batch.prompts // config.sampler.processes)  # of a minibatch's prompts
  sampling = config_lib.replayed(config.sampler.source) is None
  sampler = start_sampler(
    config.runtime.transport if sampling else "threads",  # then it only evaluates
    spec,
    WorkerSettings(
      dtype=config.sampler.dtype,
      slots=config.sampler.slots or share * config.batch.samples_per_prompt,
      partial_rollouts=config.runtime.partial_rollouts,
      chunk=config.sampler.chunk,
      weight_noise=config.sampler.weight_noise,
      timeout_s=config.runtime.timeout_s,
    ),
    workers=config.sampler.processes,
    weight_slots=config_lib.make_schedule(config).versions_kept,
    failures=FailureSettings(
      max_failures=config.runtime.max_failures, hang_timeout_s=config.runtime.hang_timeout_s
    ),
    tokenizer=tokenizer.backend.to_str() if config.sampler.stop_strings else "",
    env=env,
    ray=RaySettings(**config.runtime.ray.to_dict()),
    stop=stop,
  )
  stack.callback(sampler.close)
  return sampler


def make_guard(
  config: FrozenConfigDict, sampler: Sampler, monitor: Monitor, say: Callable[[str], None]
) -> Guard:
  """What judges the samplers' rollouts, from `monitor` on, and tells its findings to `say`."""
  whole = not any((config.sampler.top_k, config.sampler.top_p < 1, config.sampler.min_p))
  replayed = config_lib.replayed(config.sampler.source) is not None
  action = "off" if replayed else config.runtime.integrity
  return Guard(sampler, Thresholds(calibrated=whole), action, monitor, say)


def origin(config: FrozenConfigDict, tokenizer: Tokenizer) -> Origin:
  """What must be the same of two runs for one to train on the other's rollouts."""
  return Origin(
    vocabulary=vocabulary_digest(tokenizer),
    task=config.task.name,
    temperature=config.sampler.temperature,
    prompts=config.batch.prompts,
    samples_per_prompt=config.batch.samples_per_prompt,
  )


def make_intake(
  config: FrozenConfigDict,
  sampler: Sampler,
  problems: Problems,
  schedule: Schedule,
  origin: Origin,
  finished: Sequence[Result] = (),
) -> Intake | SavedIntake:
  """Where minibatches come from: the sampler, which had `finished` some before a resume, or another
  run's saved rollouts.

  Raises ConfigError if these are not there, or are not what this run would train on.
  """
  run = config_lib.replayed(config.sampler.source)
  if run is None:
    return Intake(
      sampler,
      problems,
      schedule,
      sampler_settings(config, problems.tokenizer, expert_ids=config.moe.replay == "R3"),
      seed=config.seed,
      updates=config.updates,
      timeout_s=config.runtime.timeout_s,
      parts=config.sampler.processes,
      finished=finished,
    )
  try:
    return SavedIntake(SavedRollouts(run / SAVED, origin, config.updates), sampler)
  except ValueError as error:
    raise ConfigError(f"sampler.source='replay:{run}': {error}") from error


def pick(settings: type, section: FrozenConfigDict) -> Any:
  """`settings` made of the keys of a config section that are its fields."""
  return settings(**{field.name: section[field.name] for field in dataclasses.fields(settings)})


def make_mesh(config: FrozenConfigDict) -> jax.sharding.Mesh:
  """The mesh of the learner's devices. Raises ConfigError if it does not fit them or the batch."""
  try:
    mesh = sharding.make_mesh(config.mesh.to_dict())
  except ValueError as error:
    raise ConfigError(str(error)) from error
  devices = math.prod(mesh.shape[axis] for axis in sharding.BATCH_AXES)
  piece = config.batch.prompts // config.batch.micro_batches
  if piece % devices:
    raise ConfigError(
      f"a micro-batch of {piece} prompts (batch.prompts / batch.micro_batches) does not divide "
      f"over mesh.data x mesh.fsdp x mesh.expert = {devices} devices"
    )
  return mesh
