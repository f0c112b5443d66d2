"""What can be evaluated: a run's model, one of its checkpoints, or a model and a task."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from vespo_jax import config as config_lib
from vespo_jax import (
  config_tasks,
  exports,
  metrics,
  models,
  problem_sets,
  sharding,
  tasks,
  training,
  weights,
)
from vespo_jax.evaluation import presets, records, session
from vespo_jax.evaluation.asking import Evaluator
from vespo_jax.evaluation.estimators import MAX_SAMPLES
from vespo_jax.evaluation.records import About, Evaluated
from vespo_jax.learner import manifest
from vespo_jax.learner.intake import Problems, ProblemSet
from vespo_jax.models import ModelSpec
from vespo_jax.runtime import FailureSettings, WorkerSettings, start_sampler
from vespo_jax.sampler import Settings
from vespo_jax.tokenizers import Tokenizer
from vespo_jax.types import Params

ALL = 2**31 - 1  # problems, where a test_size of 0 says all that a dataset has
MODEL_TOKENS = 512  # of a response, where no run says how many
MODEL_TIMEOUT_S = 3600.0  # of an order, where no run says how long
MODEL_SEQUENCES = 64  # sampled at a time, where no run says how many


@dataclasses.dataclass(frozen=True)
class Subject:
  """A policy, the task it is evaluated on, and how, where nothing else is asked.

  Attributes:
    name: what it is called.
    load: devices to spread it over -> updates that made it, or None, and the model.
    tasks: what it is evaluated on, by the names that rollouts have.
    reward: what scores in the place of their verifiers, by import path; "": they do.
    open_problems: the held-out problems, with a grader that the stack closes.
    test_size: how many there are at most.
    problems, sampling, seed, dtype: the defaults; `sampling` lacks the tokenizer's stop ids.
    sequences: sampled at a time.
    attention, tensor: as the config keys of the sampler.
    timeout_s: the longest wait for so many.
    out: the folder of the records.
    failures: when the sampler has failed.
  """

  name: str
  load: Callable[[int], tuple[int | None, ModelSpec, Params, Tokenizer]]
  tasks: Mapping[str, tasks.Task]
  reward: str
  open_problems: Callable[[Tokenizer, contextlib.ExitStack], ProblemSet]
  test_size: int
  problems: int
  sampling: Settings
  seed: int
  dtype: str
  sequences: int
  timeout_s: float
  out: Path
  attention: str = "dense"
  tensor: int = 1
  failures: FailureSettings = FailureSettings()

  @property
  def task(self) -> str:
    """The name of the task, or those of a mixture."""
    return " + ".join(task.name for task in self.tasks.values())

  @property
  def options(self) -> dict[str, Any]:
    """Of the task; of a mixture by label."""
    if len(self.tasks) == 1:
      return dict(next(iter(self.tasks.values())).options)
    return {label: dict(task.options) for label, task in self.tasks.items()}


@dataclasses.dataclass(frozen=True)
class Changes:
  """What is asked for in place of a subject's defaults; None leaves them."""

  problems: int | None = None
  samples: int | None = None
  seeds: list[int] | None = None
  temperature: float | None = None
  top_p: float | None = None
  max_new_tokens: int | None = None
  preset: str | None = None
  sequences: int | None = None
  dtype: str | None = None
  attention: str | None = None
  tensor: int | None = None
  out: Path | None = None


@dataclasses.dataclass(frozen=True)
class TaskSettings:
  """The held-out problems for a model that is no run's, as the config keys `task.*` say them."""

  task: str
  task_options: dict[str, Any] = dataclasses.field(default_factory=dict)
  task_seed: int = 0
  test_size: int = 200
  data_dir: Path = Path("runs/data")
  reward: str = ""


def of_run(workdir: Path, checkpoint: int | None) -> Subject:
  """A run: its finished model or, where it has not finished or a checkpoint is named, the policy of
  that one or of its newest.

  Raises ConfigError, FileNotFoundError.
  """
  config = config_lib.read(workdir / "config.json")
  updates = None if checkpoint is not None else exports.finished_updates(workdir)
  if updates is None and not exports.checkpoint_steps(workdir):
    raise FileNotFoundError(f"{workdir} has not finished and has no checkpoint")

  def load(tensor: int) -> tuple[int | None, ModelSpec, Params, Tokenizer]:
    if updates is None:
      return training.read_checkpoint(workdir, checkpoint, tensor)
    return updates, *_load(workdir, tensor)

  sampler = config.sampler
  spread = sampler.tensor if sampler.tensor <= len(jax.local_devices()) else 1
  places = models.DECODE_ATTENTION[sampler.attention]
  kernel = sampler.attention if jax.default_backend() in places else "dense"
  return Subject(
    name=str(workdir),
    load=load,
    tasks=config_tasks.make_tasks(config),
    reward=config.task.reward,
    open_problems=lambda tokenizer, stack: problem_sets.open_problems(config, tokenizer, stack)[1],
    test_size=sum(part.test_size or ALL for part in config_tasks.ingredients(config).values()),
    problems=config.evaluation.problems,
    sampling=Settings(
      max_new_tokens=sampler.max_new_tokens,
      samples_per_prompt=config.evaluation.samples_per_problem,
      stop_strings=tuple(sampler.stop_strings),
    ),
    seed=config.seed,
    dtype=sampler.dtype,
    sequences=config.batch.prompts * config.batch.samples_per_prompt,
    timeout_s=config.runtime.timeout_s,
    out=workdir / "evaluation",
    attention=kernel,
    tensor=spread,
    failures=FailureSettings(
      max_failures=config.runtime.max_failures, hang_timeout_s=config.runtime.hang_timeout_s
    ),
  )


def of_model(path: Path, of: TaskSettings) -> Subject:
  """A Hugging Face directory or GGUF file, on the held-out problems of a task.

  Raises ValueError, FileNotFoundError.
  """
  weights.read_spec(path)
  task = tasks.make(of.task, **of.task_options)
  if of.test_size < (0 if isinstance(task, tasks.StoredTask) else 1):
    raise ValueError(f"--test_size={of.test_size} must be at least 1")
  if of.reward:
    try:
      tasks.custom.load(of.reward)
    except ValueError as error:
      raise ValueError(f"--reward={of.reward}: {error}") from error

  def open_problems(tokenizer: Tokenizer, stack: contextlib.ExitStack) -> Problems:
    grader = stack.enter_context(tasks.Grader(task, reward=of.reward))
    splits = tasks.open_splits(
      task,
      data_dir=of.data_dir,
      seed=of.task_seed,
      train_size=1,  # a dataset has no empty split
      test_size=of.test_size,
    )
    return Problems(task, splits.test, tokenizer, grader, own_reward=bool(of.reward))

  return Subject(
    name=str(path),
    load=lambda tensor: (None, *_load(path, tensor)),
    tasks={task.name: task},
    reward=of.reward,
    open_problems=open_problems,
    test_size=of.test_size or ALL,
    problems=of.test_size or ALL,
    sampling=Settings(max_new_tokens=MODEL_TOKENS),
    seed=0,
    dtype="float32",
    sequences=MODEL_SEQUENCES,
    timeout_s=MODEL_TIMEOUT_S,
    out=Path("runs") / "evaluation",
  )


def _load(path: Path, tensor: int) -> tuple[ModelSpec, Params, Tokenizer]:
  mesh = sharding.make_mesh({"tensor": tensor}, jax.local_devices()[:tensor])
  return models.load(path, shardings=sharding.param_shardings(mesh, weights.read_spec(path)))


def change(subject: Subject, changes: Changes) -> tuple[Subject, list[int]]:
  """The subject as it is to be evaluated, and under which seeds.

  Raises ValueError naming the option that is out of range or contradicts another.
  """
  sampling = {
    "temperature": changes.temperature,
    "top_p": changes.top_p,
    "max_new_tokens": changes.max_new_tokens,
    "samples_per_prompt": changes.samples,
  }
  if changes.preset is not None:
    preset = presets.PRESETS[changes.preset]
    if changes.samples is None:
      names = [task.name for task in subject.tasks.values()]
      sampling["samples_per_prompt"] = presets.samples_of(changes.preset, names)
    sampling = {"temperature": preset.temperature, "top_p": preset.top_p} | _given(sampling)
  if changes.temperature == 0 and changes.samples is None:
    sampling["samples_per_prompt"] = 1
  names = ("problems", "sequences", "dtype", "attention", "tensor", "out")
  wanted = {name: getattr(changes, name) for name in names}
  changed = dataclasses.replace(
    subject, sampling=dataclasses.replace(subject.sampling, **_given(sampling)), **_given(wanted)
  )
  seeds = [subject.seed] if changes.seeds is None else changes.seeds
  samples = changed.sampling.samples_per_prompt
  if changed.sampling.temperature == 0 and samples * len(seeds) > 1:
    raise ValueError("--temperature=0 always answers the same: --samples=1 and one seed will do")
  if not 1 <= changed.problems <= subject.test_size:
    raise ValueError(f"--problems={changed.problems} must be from 1 to {subject.test_size}")
  if samples > MAX_SAMPLES:
    raise ValueError(f"--samples={samples} must be at most {MAX_SAMPLES}")
  if len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**32 for seed in seeds):
    raise ValueError(f"--seeds={seeds} must be different integers from 0 to 2**32 - 1")
  if changed.sequences < 1:
    raise ValueError(f"--sequences={changed.sequences} must be at least 1")
  paged = changed.attention == "paged" and changed.dtype != "bfloat16"
  if paged and changes.attention is None:  # the run's own, which is of bfloat16 alone
    changed = dataclasses.replace(changed, attention="dense")
  devices = len(jax.local_devices())
  if changed.tensor > devices:
    raise ValueError(f"--tensor={changed.tensor}: this process has {devices} devices")
  try:
    models.check_platform(models.DECODE_ATTENTION, changed.attention, jax.default_backend())
  except ValueError as error:
    raise ValueError(f"--attention={error}") from error
  if paged and changed.attention == "paged":
    raise ValueError(
      "--attention='paged' needs --dtype=bfloat16: it rounds keys and values to that"
    )
  return changed, seeds


def _given(values: dict[str, Any]) -> dict[str, Any]:
  return {name: value for name, value in values.items() if value is not None}


def evaluate(subject: Subject, seeds: list[int]) -> tuple[Evaluated, Path]:
  """Evaluates a subject, with progress on standard error, or goes on with what was interrupted, or
  reads what is there already; returns the evaluation and the file of its records.

  Raises what loading, the grader and the sampler raise; ValueError as `records.RecordWriter`.
  """
  step, spec, params, tokenizer = subject.load(subject.tensor)
  sampling = dataclasses.replace(subject.sampling, stop_ids=tokenizer.stop_ids)
  votable = {name: task for name, task in subject.tasks.items() if isinstance(task, tasks.Votable)}
  with contextlib.ExitStack() as stack:
    problems = subject.open_problems(tokenizer, stack)
    count = min(subject.problems, len(problems.examples))
    prompts = problems.prompts(range(count))
    longest = max(map(len, prompts))
    if longest + sampling.max_new_tokens > spec.context:
      raise ValueError(
        f"prompts of up to {longest} tokens and --max_new_tokens={sampling.max_new_tokens} do not "
        f"fit the model's {spec.context} positions"
      )
    about = About(
      model=subject.name if step is None else f"{subject.name} after update {step}",
      step=step,
      weights=manifest.digest_of(params),
      task=subject.task,
      options=subject.options,
      problems=count,
      problem_set=session.digest(problems, count),
      samples=sampling.samples_per_prompt,
      seeds=seeds,
      temperature=sampling.temperature,
      top_p=sampling.top_p,
      max_new_tokens=sampling.max_new_tokens,
      stop_strings=list(sampling.stop_strings),
      dtype=subject.dtype,
      reward=tasks.custom.identity(subject.reward),
      attention=subject.attention,
      asked=session.digest_of_asked(prompts, sampling.stop_ids),
    )
    path = subject.out / about.file_name
    if path.is_file():
      return records.read(path), path
    sampler = start_sampler(
      "threads",
      spec,
      WorkerSettings(
        subject.dtype,
        slots=subject.sequences,
        timeout_s=subject.timeout_s,
        attention=subject.attention,
        tensor=subject.tensor,
      ),
      failures=subject.failures,
      tokenizer=tokenizer.backend.to_str() if sampling.stop_strings else "",
    )
    stack.callback(sampler.close)
    sampler.publish(0, params)
    del params  # the worker has its own
    evaluator = Evaluator(
      problems,
      count,
      sampling,
      seed=seeds[0],
      timeout_s=subject.timeout_s * -(-sampling.samples_per_prompt // subject.sequences),
      prompts_per_order=max(subject.sequences // sampling.samples_per_prompt, 1),
    )
    progress = metrics.Progress(count * len(seeds), unit="problem")
    stack.enter_context(progress)
    return session.collect(evaluator, sampler, about, path, progress, votable), path
