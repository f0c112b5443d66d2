"""A config -> its problems: of one task or several, with graders, an order and what is paid for."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Mapping

import numpy as np
from ml_collections import FrozenConfigDict

from vespo_jax import config_tasks, tasks
from vespo_jax.config import ConfigError
from vespo_jax.hosts import Hosts
from vespo_jax.learner.intake import Problems, ProblemSet
from vespo_jax.learner.mixed_problems import Mixture, without_held_out
from vespo_jax.learner.shaping import Shaping
from vespo_jax.runtime import SharedGrader
from vespo_jax.tokenizers import Tokenizer


def open_problems(
  config: FrozenConfigDict,
  tokenizer: Tokenizer,
  stack: contextlib.ExitStack,
  hosts: Hosts | None = None,
) -> tuple[ProblemSet, ProblemSet]:
  """The training and the held-out problems, with graders that `stack` closes.

  Of a mixture, training problems are numbered task after task, and held-out ones interleaved, so
  that the first of them have its proportions; what one task holds out, none is trained on. Several
  `hosts` share the grading, and the first of them generates what is generated.

  Raises ConfigError if a task does not generate that many, a dataset is not prepared, or no prompt
  of one is as short as `task.max_prompt_tokens`.
  """
  ingredients = config_tasks.ingredients(config)
  made = {
    label: _open_task(config, task, ingredients[label], tokenizer, stack, hosts or Hosts())
    for label, task in config_tasks.make_tasks(config).items()
  }
  train = {label: problems for label, (problems, _) in made.items()}
  held_out = {label: problems for label, (_, problems) in made.items()}
  if not config.task.mixture:
    return train[config.task.name], held_out[config.task.name]
  try:
    train = without_held_out(train, held_out)
  except ValueError as error:
    raise ConfigError(f"task.mixture.{error}") from error
  return Mixture.concatenated(train), interleaved(config, held_out)


def interleaved(config: FrozenConfigDict, problems: Mapping[str, Problems]) -> Mixture:
  """The problems of the configured mixture in its proportions, until those of one task run out."""
  weights = [part.weight for part in config_tasks.ingredients(config).values()]
  places = tasks.interleave([len(part.examples) for part in problems.values()], weights)
  return Mixture(problems, places)


def _open_task(
  config: FrozenConfigDict,
  task: tasks.Task,
  ingredient: tasks.Ingredient,
  tokenizer: Tokenizer,
  stack: contextlib.ExitStack,
  hosts: Hosts,
) -> tuple[Problems, Problems]:
  grader = stack.enter_context(
    tasks.Grader(
      task,
      processes=config.task.grade_processes,
      timeout_s=config.task.grade_timeout_s,
      memory_gb=config.task.grade_memory_gb,
      reward=config.task.reward,
    )
  )
  if not hosts.first:
    hosts.wait()
  try:
    splits = tasks.open_splits(
      task,
      data_dir=config.task.data_dir,
      seed=config.task.seed,
      train_size=ingredient.train_size,
      test_size=ingredient.test_size,
    )
  except ValueError as error:
    raise ConfigError(f"task {task.name!r}: {error}") from error
  if hosts.first:
    hosts.wait()
  splits = _with_short_prompts(config, task, splits, tokenizer, says=hosts.first)
  shared = grader if hosts.count == 1 else SharedGrader(grader, hosts)
  failures = config.task.max_grade_failures
  own = bool(config.task.reward)
  held_out = Problems(task, splits.test, tokenizer, shared, max_failures=failures, own_reward=own)
  train = dataclasses.replace(held_out, examples=splits.train, shaping=make_shaping(config))
  return train, held_out


def _with_short_prompts(
  config: FrozenConfigDict,
  task: tasks.Task,
  splits: tasks.Splits,
  tokenizer: Tokenizer,
  says: bool,
) -> tasks.Splits:
  """The problems whose prompts are no longer than is asked for; one process `says` how many are
  left out."""
  limit = config.task.max_prompt_tokens
  if not limit:
    return splits
  fits = lambda example: len(tokenizer.encode_prompt(task.prompt(example))) <= limit
  kept = tasks.Splits(splits.train.where(fits), splits.test.where(fits))
  for use, one, before in (
    ("train on", kept.train, splits.train),
    ("hold out", kept.test, splits.test),
  ):
    if before and not one:
      raise ConfigError(f"task.max_prompt_tokens={limit} leaves nothing to {use} of {task.name!r}")
  left_out = len(splits.train) + len(splits.test) - len(kept.train) - len(kept.test)
  if left_out and says:
    print(f"{task.name}: {left_out} problems have prompts of over {limit} tokens", file=sys.stderr)
  return kept


def make_shaping(config: FrozenConfigDict) -> Shaping | None:
  """What training pays for beside being correct; None if that is nothing."""
  shaping = Shaping(**config.reward.to_dict())
  if not shaping.active:
    return None
  return dataclasses.replace(
    shaping, max_length=shaping.max_length or config.sampler.max_new_tokens
  )


def make_stream(
  config: FrozenConfigDict, problems: ProblemSet
) -> tuple[tasks.Stream, tasks.Curricula | None]:
  """The order of the training problems, and the curricula in it."""
  curriculum = config.task.curriculum
  parts = problems.parts if isinstance(problems, Mixture) else {"task": problems}
  sizes = [len(part.examples) for part in parts.values()]
  # tasks of a mixture have orders of their own, also those of one size
  own = np.random.SeedSequence(config.seed).generate_state(len(parts))
  seeds = own.tolist() if len(parts) > 1 else [config.seed]
  curricula = None
  if curriculum.floor < 1:
    streams = [
      tasks.Curriculum(size, seed, floor=curriculum.floor, decay=curriculum.decay)
      for size, seed in zip(sizes, seeds, strict=True)
    ]
    curricula = tasks.Curricula(dict(zip(parts, streams, strict=True)))
  else:
    streams = [tasks.PromptStream(size, seed) for size, seed in zip(sizes, seeds, strict=True)]
  if len(parts) == 1:
    return streams[0], curricula
  weights = [part.weight for part in config_tasks.ingredients(config).values()]
  return tasks.MixtureStream(streams, sizes, weights), curricula
