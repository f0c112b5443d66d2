"""A config -> a running experiment: builds the objects of every room, runs the loop, reports."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import FrozenConfigDict

from vespo_jax import config as config_lib
from vespo_jax import metrics, models, report, sharding, tasks, weights
from vespo_jax.config import ConfigError
from vespo_jax.evaluation import Evaluation, Evaluator
from vespo_jax.learner.anchors import Anchors, copy
from vespo_jax.learner.checkpoint import Checkpoints, abstract_like
from vespo_jax.learner.gradient import LossSettings
from vespo_jax.learner.guard import Guard
from vespo_jax.learner.intake import Intake, Problems, SavedIntake
from vespo_jax.learner.integrity import Thresholds
from vespo_jax.learner.loop import Diverged, Loop, LoopSettings
from vespo_jax.learner.optimizer import OptimizerSettings, make_optimizer
from vespo_jax.learner.saved import Origin, RolloutWriter, SavedRollouts, vocabulary_digest
from vespo_jax.learner.update import (
  StepSettings,
  compile_score,
  compile_update,
  init_state,
  make_update,
  place_state,
  state_shardings,
)
from vespo_jax.models import ModelSpec, lora
from vespo_jax.models.lora import LoraSettings
from vespo_jax.processes import ChildDied
from vespo_jax.runtime import (
  FailureSettings,
  Sampler,
  SamplersFailed,
  WorkerSettings,
  start_sampler,
)
from vespo_jax.sampler import Settings
from vespo_jax.tokenizers import Tokenizer, byte_tokenizer
from vespo_jax.types import Params, TrainState

__all__ = [
  "ChildDied",
  "Diverged",
  "SamplersFailed",
  "load_policy",
  "make_evaluator",
  "open_problems",
  "train",
]

SAVED = "rollouts.parquet"  # in a run directory, all its rollouts
GPU_MEMORY_VARIABLE = "XLA_CLIENT_MEM_FRACTION"  # read when JAX starts its backend


def train(
  config: FrozenConfigDict, workdir: Path, stop: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
  """Runs the experiment of `config` in `workdir`, or resumes it; returns what `result.json` holds.

  Args:
    config: from `config.parse` or `config.validate`.
    workdir: made if missing; its layout is that of DESIGN section 7.
    stop: asked between rollout batches; True saves the state and ends with "preempted".

  Raises:
    ConfigError: if `workdir` holds a run of another config, the mesh does not fit the devices, or
      the policy at `policy.path` lacks what the config asks of it.
    Diverged, ChildDied, SamplersFailed, TimeoutError: as `Loop.run`, after `result.json` says so.
  """
  _claim(config, workdir)
  finished = _finished(config, workdir)
  if finished is not None:
    return finished
  with contextlib.ExitStack() as stack:
    return _run(config, workdir, stop, stack)


def summary(result: dict[str, Any], workdir: Path) -> str:
  """What a finished run prints: both accuracies and where to look."""
  before, after = (Evaluation(**result[f"evaluation_{when}"]) for when in ("before", "after"))
  return (
    f"\n{result['updates']} updates in {result['wall_time_s']:.0f} s"
    f"\nheld-out accuracy before: {before}\nheld-out accuracy after:  {after}"
    f"\nreport: {workdir / 'report.html'}"
  )


def load_policy(config: FrozenConfigDict) -> tuple[ModelSpec, Params, Tokenizer]:
  """The configured policy: read from `policy.path`, or random weights of the configured sizes."""
  policy = config.policy
  if policy.path:
    return models.load(policy.path)
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
  """The training and the held-out problems, with a grader that `stack` closes."""
  task = config_lib.make_task(config)
  grader = stack.enter_context(tasks.Grader(task, timeout_s=config.task.grade_timeout_s))
  splits = tasks.open_splits(
    task,
    data_dir=config.task.data_dir,
    seed=config.task.seed,
    train_size=config.task.train_size,
    test_size=config.task.test_size,
  )
  train_problems = Problems(task, splits.train, tokenizer, grader)
  return train_problems, Problems(task, splits.test, tokenizer, grader)


def sampler_settings(config: FrozenConfigDict, tokenizer: Tokenizer, **changes: Any) -> Settings:
  """How the run samples; `changes` override fields."""
  settings = Settings(
    max_new_tokens=config.sampler.max_new_tokens,
    temperature=config.sampler.temperature,
    samples_per_prompt=config.batch.samples_per_prompt,
    stop_ids=tokenizer.stop_ids,
    top_k=config.sampler.top_k,
    top_p=config.sampler.top_p,
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
    sampler_settings(config, held_out.tokenizer, temperature=1.0, samples_per_prompt=samples),
    seed=config.seed,
    timeout_s=config.runtime.timeout_s,
    prompts_per_order=max(config.batch.prompts * config.batch.samples_per_prompt // samples, 1),
  )


def _run(
  config: FrozenConfigDict, workdir: Path, stop: Callable[[], bool], stack: contextlib.ExitStack
) -> dict[str, Any]:
  started = time.perf_counter()
  mesh = _mesh(config)
  spec, params, tokenizer = load_policy(config)
  config_lib.check_moe(config, spec.experts)
  sampler = _start_sampler(config, spec, tokenizer, stack)
  train_problems, test_problems = open_problems(config, tokenizer, stack)
  evaluator = make_evaluator(config, test_problems)
  optimizer = make_optimizer(_pick(OptimizerSettings, config.optimizer))
  adapters = config_lib.make_lora(config, spec)
  if adapters is None:
    state = init_state(params, optimizer)
  else:
    trained = lora.init(spec, jax.random.key(config.seed), adapters)
    state = init_state(trained, optimizer, frozen=params)
  loss = _loss_settings(config)
  update = make_update(
    spec,
    config_lib.make_objective(config),
    config_lib.make_advantage(config),
    optimizer,
    loss,
    _pick(StepSettings, config.optimizer),
    adapters,
  )
  state = place_state(mesh, spec, state)
  reference = copy(state.params) if adapters is None else state.frozen  # the former is donated
  anchors = Anchors(
    score=compile_score(mesh, spec, loss),
    reference=reference if loss.needs_reference else None,
    needs_proximal=loss.needs_proximal,
    replay_proximal=loss.replay == "R2",
  )

  checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint.keep)
  stack.callback(checkpoints.close)
  abstract = abstract_like(state, state_shardings(mesh, spec, state))
  restored = checkpoints.restore(abstract, at_most=config.updates)
  step = 0 if restored is None else int(restored.step)
  progress = stack.enter_context(metrics.Progress(config.updates, start=step))
  writer = stack.enter_context(metrics.MetricsWriter(workdir / "metrics.jsonl"))
  writer.truncate(step)
  if restored is not None:
    progress.message(f"resuming after update {step}")
  before = _evaluate_before(workdir, params, sampler, evaluator, progress)

  schedule = config_lib.make_schedule(config)
  origin = _origin(config, tokenizer)
  saved = RolloutWriter(workdir / SAVED, origin) if config.rollouts.save_all else None
  if saved is not None:
    saved.truncate(step)
  replayed = config_lib.replayed(config.sampler.source)
  if replayed is not None:
    intake = SavedIntake(_open_saved(replayed, origin, config.updates))
  else:
    intake = Intake(
      sampler,
      train_problems,
      schedule,
      sampler_settings(config, tokenizer),
      seed=config.seed,
      updates=config.updates,
      timeout_s=config.runtime.timeout_s,
      parts=config.sampler.processes,
    )
  loop = Loop(
    workdir=workdir,
    update=compile_update(update, mesh, spec, state),
    policy=_policy(adapters),
    anchors=anchors,
    state=state if restored is None else dataclasses.replace(restored, frozen=state.frozen),
    mesh=mesh,
    sampler=sampler,
    intake=Intake(
      sampler,
      train_problems,
      schedule,
      sampler_settings(config, tokenizer, expert_ids=config.moe.replay == "R3"),
      seed=config.seed,
      updates=config.updates,
      timeout_s=config.runtime.timeout_s,
      parts=config.sampler.processes,
    ),
    problems=train_problems,
    schedule=schedule,
    guard=_guard(config, sampler, progress),
    saved=saved,
    settings=LoopSettings(
      updates=config.updates,
      samples_per_prompt=config.batch.samples_per_prompt,
      max_new_tokens=config.sampler.max_new_tokens,
      checkpoint_every=config.checkpoint.every,
      evaluation_every=config.evaluation.every,
      save_groups=config.rollouts.save_groups,
    ),
    checkpoints=checkpoints,
    metrics=writer,
    progress=progress,
    evaluate=lambda version: _evaluate_during(sampler, evaluator, version, progress),
    stop=stop,
    elapsed_before_s=_elapsed_s(workdir, started),
  )
  result: dict[str, Any] = {"evaluation_before": before.to_dict()}
  try:
    result["stop_reason"] = loop.run()
    if result["stop_reason"] == "finished":
      result["evaluation_after"] = evaluator.run(sampler, loop.step).to_dict()
      models.save(workdir / "model", spec, jax.device_get(loop.policy(loop.state)), tokenizer)
      if adapters is not None:
        weights.save_adapters(workdir / "adapter", jax.device_get(loop.state.params), adapters)
  except BaseException as error:  # whatever ends the run, the result says so; then it goes on
    result["stop_reason"] = f"{type(error).__name__}: {error}"
    raise
  finally:
    result |= {"updates": loop.step, "wall_time_s": loop.elapsed_s()}
    result["sampler_failures"] = sampler.failures()
    _write_json(workdir / "result.json", result)
  report.write(workdir)
  return result


def _loss_settings(config: FrozenConfigDict) -> LossSettings:
  return LossSettings(
    temperature=config.sampler.temperature,
    aggregation=config.objective.aggregation or None,
    micro_batches=config.batch.micro_batches,
    remat=config.policy.remat,
    proximal_denominator=config.correction.denominator != "behaviour",
    correction=config_lib.make_correction(config),
    kl_coefficient=config.kl.coefficient,
    kl_estimator=config.kl.estimator,
    kl_in_reward=config.kl.placement == "reward",
    entropy_coefficient=config.entropy.coefficient,
    proximal_divergence=config.proximal_step.divergence,
    proximal_step_size=config.proximal_step.step_size,
    balance_coefficient=config.moe.balance_coefficient,
    z_coefficient=config.moe.z_coefficient,
    replay=config.moe.replay,
  )


def _policy(adapters: LoraSettings | None) -> Callable[[TrainState], Params]:
  if adapters is None:
    return lambda state: state.params
  merge = jax.jit(lora.merge, static_argnums=2)
  return lambda state: merge(state.frozen, state.params, adapters)


def _guard(config: FrozenConfigDict, sampler: Sampler, progress: metrics.Progress) -> Guard:
  whole = not any((config.sampler.top_k, config.sampler.top_p < 1, config.sampler.min_p))
  replayed = config_lib.replayed(config.sampler.source) is not None
  action = "off" if replayed else config.runtime.integrity
  return Guard(sampler, Thresholds(calibrated=whole), action, progress.message)


def _origin(config: FrozenConfigDict, tokenizer: Tokenizer) -> Origin:
  return Origin(
    vocabulary=vocabulary_digest(tokenizer),
    task=config.task.name,
    temperature=config.sampler.temperature,
    prompts=config.batch.prompts,
    samples_per_prompt=config.batch.samples_per_prompt,
  )


def _open_saved(run: Path, origin: Origin, updates: int) -> SavedRollouts:
  try:
    return SavedRollouts(run / SAVED, origin, updates)
  except ValueError as error:
    raise ConfigError(f"sampler.source='replay:{run}': {error}") from error


def _pick(settings: type, section: FrozenConfigDict) -> Any:
  """`settings` made of the keys of a config section that are its fields."""
  return settings(**{field.name: section[field.name] for field in dataclasses.fields(settings)})


def _elapsed_s(workdir: Path, started: float) -> float:
  """Seconds already spent: up to the last kept row, or on setting up a fresh run."""
  rows = metrics.read(workdir / "metrics.jsonl")
  return rows[-1]["wall_time_s"] if rows else time.perf_counter() - started


def _evaluate_during(
  sampler: Sampler, evaluator: Evaluator, weight_version: int, progress: metrics.Progress
) -> dict[str, float]:
  evaluation = evaluator.run(sampler, weight_version)
  progress.message(f"held-out accuracy after update {weight_version}: {evaluation}")
  return {
    "evaluation/accuracy": evaluation.accuracy,
    "evaluation/low": evaluation.low,
    "evaluation/high": evaluation.high,
  }


def _claim(config: FrozenConfigDict, workdir: Path) -> None:
  """Writes the config into a new run directory, or checks that it is this run's."""
  path = workdir / "config.json"
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    if path.is_file():
      stored, mine = json.loads(path.read_text()), json.loads(json.dumps(config.to_dict()))
      differing = [key for key in config_lib.differences(stored, mine) if key != "updates"]
      if differing:
        raise ConfigError(
          f"--workdir={workdir} holds a run with another {', '.join(differing[:5])}; "
          "give another directory, or remove this one"
        )
    config_lib.write(config, path)
  except OSError as error:
    raise ConfigError(f"--workdir={workdir} cannot be written: {error}") from error


def _finished(config: FrozenConfigDict, workdir: Path) -> dict[str, Any] | None:
  path = workdir / "result.json"
  result = json.loads(path.read_text()) if path.is_file() else {}
  done = result.get("stop_reason") == "finished" and result["updates"] == config.updates
  return result if done else None


def _mesh(config: FrozenConfigDict) -> jax.sharding.Mesh:
  try:
    mesh = sharding.make_mesh(config.mesh.to_dict())
  except ValueError as error:
    raise ConfigError(str(error)) from error
  devices = mesh.shape["data"] * mesh.shape["fsdp"]
  piece = config.batch.prompts // config.batch.micro_batches
  if piece % devices:
    raise ConfigError(
      f"a micro-batch of {piece} prompts (batch.prompts / batch.micro_batches) does not divide "
      f"over mesh.data x mesh.fsdp = {devices} devices"
    )
  return mesh


def _start_sampler(
  config: FrozenConfigDict, spec: ModelSpec, tokenizer: Tokenizer, stack: contextlib.ExitStack
) -> Sampler:
  env = {GPU_MEMORY_VARIABLE: str(config.runtime.gpu_memory_fraction)}
  sampling = config_lib.replayed(config.sampler.source) is None
  sampler = start_sampler(
    config.runtime.transport if sampling else "threads",  # then it only evaluates
    spec,
    WorkerSettings(config.sampler.dtype),
    workers=config.sampler.processes,
    weight_slots=config_lib.make_schedule(config).versions_kept,
    failures=FailureSettings(
      max_failures=config.runtime.max_failures, hang_timeout_s=config.runtime.hang_timeout_s
    ),
    tokenizer=tokenizer.backend.to_str() if config.sampler.stop_strings else "",
    env=env,
  )
  stack.callback(sampler.close)
  return sampler


def _evaluate_before(
  workdir: Path, params: Params, sampler: Sampler, evaluator: Evaluator, progress: metrics.Progress
) -> Evaluation:
  """The accuracy of the initial policy, measured once per run directory."""
  path = workdir / "evaluation_before.json"
  if path.is_file():
    return Evaluation(**json.loads(path.read_text()))
  progress.message("sampling held-out problems before training")
  sampler.publish(0, params)
  before = evaluator.run(sampler, 0)
  progress.message(f"held-out accuracy before training: {before}")
  _write_json(path, before.to_dict())
  return before


def _write_json(path: Path, value: Any) -> None:
  path.write_text(json.dumps(value, indent=2) + "\n")
