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
from vespo_jax import metrics, models, parts, report, weights
from vespo_jax.config import ConfigError
from vespo_jax.evaluation import Evaluation, Evaluator
from vespo_jax.learner.anchors import Anchors, copy
from vespo_jax.learner.checkpoint import Checkpoints, abstract_like
from vespo_jax.learner.integrity import Monitor
from vespo_jax.learner.loop import Diverged, Loop, LoopSettings
from vespo_jax.learner.optimizer import OptimizerSettings, make_optimizer
from vespo_jax.learner.saved import RolloutWriter
from vespo_jax.learner.update import (
  StepSettings,
  compile_score,
  compile_update,
  init_state,
  make_update,
  place_state,
  state_shardings,
)
from vespo_jax.models import lora
from vespo_jax.processes import ChildDied
from vespo_jax.runtime import Sampler, SamplersFailed
from vespo_jax.types import Params

__all__ = ["ChildDied", "Diverged", "SamplersFailed", "train"]


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
  fresh = _claim(config, workdir)
  finished = _finished(config, workdir)
  if finished is not None:
    return finished
  try:
    with contextlib.ExitStack() as stack:
      return _run(config, workdir, stop, stack)
  except ConfigError:
    if fresh:  # nothing has run under this config: the corrected one may have the directory
      (workdir / "config.json").unlink()
    raise


def summary(result: dict[str, Any], workdir: Path) -> str:
  """What a finished run prints: both accuracies and where to look."""
  before, after = (Evaluation(**result[f"evaluation_{when}"]) for when in ("before", "after"))
  return (
    f"\n{result['updates']} updates in {result['wall_time_s']:.0f} s"
    f"\nheld-out accuracy before: {before}\nheld-out accuracy after:  {after}"
    f"\nreport: {workdir / 'report.html'}"
  )


def _run(
  config: FrozenConfigDict, workdir: Path, stop: Callable[[], bool], stack: contextlib.ExitStack
) -> dict[str, Any]:
  started = time.perf_counter()
  mesh = parts.make_mesh(config)
  spec, params, tokenizer = parts.load_policy(config)
  config_lib.check_moe(config, spec.experts)
  sampler = parts.open_sampler(config, spec, tokenizer, stack)
  train_problems, test_problems = parts.open_problems(config, tokenizer, stack)
  evaluator = parts.make_evaluator(config, test_problems)
  optimizer = make_optimizer(parts.pick(OptimizerSettings, config.optimizer))
  adapters = config_lib.make_lora(config, spec)
  if adapters is None:
    state = init_state(params, optimizer)
  else:
    trained = lora.init(spec, jax.random.key(config.seed), adapters)
    state = init_state(trained, optimizer, frozen=params)
  loss = parts.loss_settings(config)
  update = make_update(
    spec,
    config_lib.make_objective(config),
    config_lib.make_advantage(config),
    optimizer,
    loss,
    parts.pick(StepSettings, config.optimizer),
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
  monitor = Monitor()
  if restored is not None:
    state = dataclasses.replace(restored[0], frozen=state.frozen)
    monitor = Monitor.from_dict(restored[1])
  step = int(state.step)
  progress = stack.enter_context(metrics.Progress(config.updates, start=step))
  writer = stack.enter_context(metrics.MetricsWriter(workdir / "metrics.jsonl"))
  writer.truncate(step)
  if restored is not None:
    progress.message(f"resuming after update {step}")
  before = _evaluate_before(workdir, params, sampler, evaluator, progress)

  schedule = config_lib.make_schedule(config)
  origin = parts.origin(config, tokenizer)
  saved = RolloutWriter(workdir / parts.SAVED, origin) if config.rollouts.save_all else None
  if saved is not None:
    saved.truncate(step)
  loop = Loop(
    workdir=workdir,
    update=compile_update(update, mesh, spec, state),
    policy=parts.model_of(adapters),
    anchors=anchors,
    state=state,
    mesh=mesh,
    sampler=sampler,
    intake=parts.make_intake(config, sampler, train_problems, schedule, origin),
    problems=train_problems,
    schedule=schedule,
    guard=parts.make_guard(config, sampler, monitor, progress.message),
    saved=saved,
    settings=LoopSettings(
      updates=config.updates,
      samples_per_prompt=config.batch.samples_per_prompt,
      max_new_tokens=config.sampler.max_new_tokens,
      checkpoint_every=config.checkpoint.every,
      evaluation_every=config.evaluation.every,
      save_groups=config.rollouts.save_groups,
      profile_updates=config.runtime.profile_updates,
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


def _claim(config: FrozenConfigDict, workdir: Path) -> bool:
  """Writes the config into a run directory, new or this run's; returns whether it is new."""
  path = workdir / "config.json"
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    fresh = not path.is_file()
    if not fresh:
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
  return fresh


def _finished(config: FrozenConfigDict, workdir: Path) -> dict[str, Any] | None:
  path = workdir / "result.json"
  result = json.loads(path.read_text()) if path.is_file() else {}
  done = result.get("stop_reason") == "finished" and result["updates"] == config.updates
  return result if done else None


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
