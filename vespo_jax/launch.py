"""A config -> a running experiment: builds the objects of every room, runs the loop, reports."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from ml_collections import FrozenConfigDict

from vespo_jax import config as config_lib
from vespo_jax import (
  config_policy,
  files,
  metrics,
  models,
  parts,
  problem_sets,
  report,
  rundirs,
  sharding,
  training,
  weights,
)
from vespo_jax.config import ConfigError
from vespo_jax.evaluation import Evaluation, Evaluator
from vespo_jax.hosts import Hosts, HostsFailed
from vespo_jax.learner import manifest
from vespo_jax.learner.checkpoint import CheckpointError, Checkpoints, RunState
from vespo_jax.learner.failure import Breakdown, Diverged
from vespo_jax.learner.groups import NoSignal
from vespo_jax.learner.integrity import Monitor
from vespo_jax.learner.loop import Loop, LoopSettings
from vespo_jax.learner.retention import Retention
from vespo_jax.learner.saved import RolloutWriter
from vespo_jax.processes import ChildDied
from vespo_jax.runtime import Preempted, Sampler, SamplersFailed, Snapshot
from vespo_jax.runtime import schedule as schedules
from vespo_jax.tokenizers import Tokenizer
from vespo_jax.types import Params, TrainState

__all__ = [
  "CheckpointError",
  "ChildDied",
  "Diverged",
  "HostsFailed",
  "NoSignal",
  "SamplersFailed",
  "train",
]


def train(
  config: FrozenConfigDict,
  workdir: Path,
  stop: Callable[[], bool] = lambda: False,
  hosts: Hosts | None = None,
) -> dict[str, Any]:
  """Runs the experiment of `config` in `workdir`, or resumes it; returns what `result.json` holds.

  Args:
    config: from `config.parse` or `config.validate`.
    workdir: made if missing; the README says what it holds.
    stop: asked between updates and while samplers are waited for; True saves the run and ends with
      "preempted".
    hosts: the processes of the run, where there are several: all of them call this, the first
      writes the directory, and all share it for checkpoints.

  Raises:
    ConfigError: if `workdir` holds a run of another config, the mesh does not fit the devices, or
      the policy at `policy.path` lacks what the config asks of it.
    CheckpointError: if the run cannot be restored or saved.
    Diverged, NoSignal, ChildDied, SamplersFailed, TimeoutError: as `Loop.run`, after `result.json`
      says so.
    HostsFailed: if another process failed.
  """
  hosts = hosts or Hosts(stop)
  with rundirs.claimed(config, workdir, "train", hosts.first), contextlib.ExitStack() as stack:
    finished = hosts.tell(
      lambda: rundirs.finished_result(workdir, {"updates": config.updates}, "evaluation_after")
    )
    if finished is None:
      return _run(config, workdir, hosts, stack)
  if hosts.first and _unreported(workdir):
    report.write(workdir)
  return finished


def _unreported(workdir: Path) -> bool:
  """Whether a finished run was ended before its report, the last thing that it writes: one that is
  there is then of an earlier attempt."""
  page, result = workdir / report.PAGE, workdir / "result.json"
  return not page.is_file() or page.stat().st_mtime_ns < result.stat().st_mtime_ns


def summary(result: dict[str, Any], workdir: Path) -> str:
  """What a finished run prints: both accuracies and where to look."""
  before, after = (Evaluation(**result[f"evaluation_{when}"]) for when in ("before", "after"))
  return (
    f"\n{result['updates']} updates in {result['wall_time_s']:.0f} s"
    f"\nheld-out accuracy before: {before}\nheld-out accuracy after:  {after}"
    f"\nreport: {workdir / report.PAGE}"
  )


def _run(
  config: FrozenConfigDict, workdir: Path, hosts: Hosts, stack: contextlib.ExitStack
) -> dict[str, Any]:
  started = time.perf_counter()
  mesh = parts.make_mesh(config)
  hosts.connect(mesh)
  spec, params, tokenizer = parts.load_policy(config, mesh)
  config_policy.check_spec(config, spec)
  pieces = parts.open_pieces(config, mesh, spec, workdir, hosts)
  sampler = parts.open_sampler(config, spec, tokenizer, stack, hosts, pieces)
  problems, held_out = problem_sets.open_problems(config, tokenizer, stack, hosts)
  evaluator = parts.make_evaluator(config, held_out)
  learner = training.make_learner(config, mesh, spec, params)
  retention = parts.pick(Retention, config.checkpoint)
  published = None if pieces is None else pieces.like
  checkpoints = Checkpoints(workdir / "checkpoints", spec, retention, hosts, published=published)
  stack.callback(checkpoints.close)
  screen = None if hosts.first else stack.enter_context(open(os.devnull, "w"))
  run = _restore(config, workdir, checkpoints, learner, screen)
  step = int(run.state.step)
  progress = stack.enter_context(metrics.Progress(config.updates, start=step, stream=screen))
  origin = parts.origin(config, tokenizer)
  writer = saved = None
  if hosts.first:
    writer = stack.enter_context(rundirs.open_metrics(config, workdir))
    saved = RolloutWriter(workdir / parts.SAVED, origin) if config.rollouts.save_all else None
    try:
      _cut_back(workdir, writer, saved, step)
    except ValueError as error:
      raise CheckpointError(f"the run cannot go on from update {step}: {error}") from error
  needed = config.guards.max_skipped + 1  # rows of metrics, to go on from
  rows = hosts.tell(lambda: metrics.read(workdir / "metrics.jsonl", last=needed))
  try:
    new = run.state is learner.state
    before = _evaluate_before(workdir, new, params, sampler, evaluator, progress, hosts)
  except Preempted:
    return {"stop_reason": "preempted", "updates": step}
  del params  # what was resumed has others, and else the first update donates them
  learner = dataclasses.replace(learner, state=run.state)
  for version in sorted(run.samplers.weights):
    sampler.publish(version, run.samplers.weights[version])
  schedule = config_lib.make_schedule(config)
  learner.start_rollout_batch(run, schedule)
  loop = Loop(
    workdir=workdir,
    update=learner.update,
    policy=learner.policy,
    anchors=learner.anchors,
    state=run.state,
    mesh=mesh,
    sampler=sampler,
    intake=parts.make_intake(
      config, sampler, problems, schedule, origin, run, spec, evaluator.longest_prompt
    ),
    problems=problems,
    schedule=schedule,
    guard=parts.make_guard(config, sampler, Monitor.from_dict(run.monitor), progress.message),
    saved=saved,
    settings=_loop_settings(config),
    checkpoints=checkpoints,
    metrics=writer,
    progress=progress,
    evaluate=lambda version: _evaluate_during(sampler, evaluator, version, progress),
    stop=hosts.stopped,
    breakdown=Breakdown(workdir / "failure", spec, origin, problems, hosts),
    rows=rows,
    reference=run.reference,
    elapsed_before_s=rows[-1]["wall_time_s"] if rows else time.perf_counter() - started,
  )
  del run  # samplers have its weights, and the loop has the state
  result: dict[str, Any] = {"evaluation_before": before.to_dict()}
  try:
    with hosts.together():
      result["stop_reason"] = loop.run()
      if result["stop_reason"] == "finished":
        try:
          result["evaluation_after"] = evaluator.run(sampler, loop.step).to_dict()
          export(workdir, learner, loop.state, tokenizer, hosts.first)
        except Preempted:  # on all hosts, so that it is no failure to tell them of
          result["stop_reason"] = "preempted"
  except BaseException as error:  # whatever ends the run, the result says so; then it goes on
    result["stop_reason"] = f"{type(error).__name__}: {error}"
    raise
  finally:
    result |= {"updates": loop.step, "wall_time_s": loop.elapsed_s()}
    result["sampler_failures"] = sampler.failures()
    if hosts.first:
      _write_json(workdir / "result.json", result)
  if hosts.first and loop.step:
    report.write(workdir)
  return result


def _restore(
  config: FrozenConfigDict,
  workdir: Path,
  checkpoints: Checkpoints,
  learner: training.Learner,
  screen: TextIO | None,
) -> RunState:
  """The run to go on with: that of the newest good checkpoint, or a new one; said on `screen`.

  Raises CheckpointError; ConfigError if the policy it started from is another one by now.
  """
  fixed = learner.anchors.reference if learner.adapters is None else learner.state.frozen
  digest = manifest.digest_of(fixed) if fixed is not None else ""
  found = learner.restore(
    checkpoints,
    config.updates,
    lambda place, problem: _say(f"a damaged checkpoint, now {place}: {problem}", screen),
  )
  if found is None:
    return RunState(learner.state, Snapshot(), Monitor().to_dict(), digest)
  if found.reference != digest:
    raise ConfigError(
      f"policy.path={config.policy.path!r} is not the policy that the run in {workdir} started "
      "from, or that is no run of vespo_jax.train"
    )
  _say(f"resuming after update {int(found.state.step)}", screen)
  return found


def _cut_back(
  workdir: Path, writer: metrics.MetricsWriter, saved: RolloutWriter | None, step: int
) -> None:
  """Cuts what a run writes update by update back to its first `step` updates. Raises ValueError
  naming a line that is not what was written."""
  writer.truncate(step)
  for path in (workdir / "rollouts").glob("*.jsonl"):
    if path.stem.isdecimal() and int(path.stem) > step:
      path.unlink()
  schedules.truncate(workdir / "schedule.jsonl", step)
  if saved is not None:
    saved.truncate(step)


def _loop_settings(config: FrozenConfigDict) -> LoopSettings:
  return LoopSettings(
    updates=config.updates,
    samples_per_prompt=config.batch.samples_per_prompt,
    max_new_tokens=config.sampler.max_new_tokens,
    checkpoint_every=config.checkpoint.every,
    evaluation_every=config.evaluation.every,
    save_groups=config.rollouts.save_groups,
    save_tokens=config.rollouts.save_tokens,
    profile_updates=config.runtime.profile_updates,
    max_skipped=config.guards.max_skipped,
  )


def export(
  workdir: Path,
  learner: training.Learner,
  state: TrainState,
  tokenizer: Tokenizer,
  writes: bool = True,
) -> None:
  """Writes the trained policy, and the adapters if that is what was trained; all processes gather
  it, and one `writes`."""
  policy = sharding.fetch(learner.policy(state))
  if writes:
    models.save(workdir / "model", learner.spec, policy, tokenizer)
  if learner.adapters is not None:
    trained = sharding.fetch(state.params)
    if writes:
      weights.save_adapters(workdir / "adapter", trained, learner.adapters)


def _evaluate_during(
  sampler: Sampler, evaluator: Evaluator, weight_version: int, progress: metrics.Progress
) -> dict[str, float]:
  evaluation = evaluator.run(sampler, weight_version)
  progress.message(f"held-out accuracy after update {weight_version}: {evaluation}")
  return {
    "evaluation/accuracy": evaluation.accuracy,
    "evaluation/low": evaluation.low,
    "evaluation/high": evaluation.high,
    **{f"evaluation/pass_at_{k}": passed for k, passed in evaluation.pass_at_k.items()},
  }


def _evaluate_before(
  workdir: Path,
  new: bool,
  params: Params,
  sampler: Sampler,
  evaluator: Evaluator,
  progress: metrics.Progress,
  hosts: Hosts,
) -> Evaluation:
  """The accuracy of the initial policy, measured where the run is `new`; one that goes on from a
  checkpoint has it already. What died before its first was of a policy and problems that may be
  others by now."""
  path = workdir / "evaluation_before.json"
  stored = hosts.tell(lambda: {} if new else files.read_object(path))
  if stored:
    return Evaluation(**stored)
  progress.message("sampling held-out problems before training")
  sampler.publish(0, params)
  before = evaluator.run(sampler, 0)
  progress.message(f"held-out accuracy before training: {before}")
  if hosts.first:
    _write_json(path, before.to_dict())
  return before


def _say(text: str, screen: TextIO | None) -> None:
  print(text, file=screen or sys.stderr, flush=True)


def _write_json(path: Path, value: Any) -> None:
  files.write(path, json.dumps(value, indent=2) + "\n")
