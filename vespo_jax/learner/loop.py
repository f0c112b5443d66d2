"""The host loop: rollouts in, updates out, one line of metrics per update, one step late."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vespo_jax import sharding
from vespo_jax.advantages import Advantage
from vespo_jax.learner.batching import make_batch
from vespo_jax.learner.checkpoint import Checkpoints
from vespo_jax.learner.intake import Intake, Minibatch, Problems
from vespo_jax.learner.update import Update
from vespo_jax.metrics import MetricsWriter, Progress
from vespo_jax.runtime import Sampler, SyncSchedule
from vespo_jax.types import HostArray, Rollout, TrainBatch, TrainState


class Diverged(RuntimeError):
  """A loss, gradient or parameter is not finite."""


@dataclasses.dataclass(frozen=True)
class LoopSettings:
  """The numbers the loop needs: see the keys of the same names in configs/base.py."""

  updates: int
  samples_per_prompt: int
  max_new_tokens: int
  checkpoint_every: int
  evaluation_every: int
  save_groups: int


@dataclasses.dataclass
class Pending:
  """An update whose metrics are still on the device."""

  row: dict[str, Any]
  device_metrics: dict[str, jax.Array]
  minibatch: Minibatch
  batch: TrainBatch
  dispatched: float


class Loop:
  """Everything one training run holds, and the loop over its updates.

  Args:
    workdir: the run directory.
    update: the compiled update.
    state: placed on `mesh`; `state.step` updates have been made.
    evaluate: `(weight_version) -> metrics`, run between rollout batches.
    stop: asked between rollout batches; True ends the run early.
  """

  def __init__(
    self,
    workdir: Path,
    *,
    update: Update,
    state: TrainState,
    mesh: Mesh,
    sampler: Sampler,
    intake: Intake,
    problems: Problems,
    schedule: SyncSchedule,
    advantage: Advantage,
    settings: LoopSettings,
    checkpoints: Checkpoints,
    metrics: MetricsWriter,
    progress: Progress,
    evaluate: Callable[[int], dict[str, float]],
    stop: Callable[[], bool],
    elapsed_s: float = 0.0,
  ):
    self.state = state
    self.step = int(state.step)  # counted here from now on, never read back from the device
    self._workdir, self._update, self._mesh = workdir, update, mesh
    self._sampler, self._intake, self._problems = sampler, intake, problems
    self._schedule, self._advantage, self._settings = schedule, advantage, settings
    self._checkpoints, self._metrics, self._progress = checkpoints, metrics, progress
    self._evaluate, self._stop = evaluate, stop
    self._pending: Pending | None = None
    self._started = time.perf_counter() - elapsed_s
    self._last_ready = time.perf_counter()

  def run(self) -> str:
    """Updates until the end, or until `stop`; returns why it stopped: "finished" or "preempted".

    Raises:
      Diverged: with the evidence written to `failure/`.
      ChildDied, TimeoutError: if the sampler or the grader fails.
    """
    while self.step < self._settings.updates:
      if self._schedule.is_boundary(self.step) and self._between_batches():
        return "preempted"
      minibatch = self._intake.get(self.step)
      batch, row = make_batch(
        minibatch.rollouts,
        self._settings.samples_per_prompt,
        self._settings.max_new_tokens,
        self._advantage,
      )
      device_batch = jax.device_put(batch, sharding.batch_sharding(self._mesh))
      dispatched = time.perf_counter()
      self.state, device_metrics = self._update(self.state, device_batch)
      self._finish_pending()
      self.step += 1
      row |= {"step": self.step, "weight_version": self.step}
      self._pending = Pending(row, device_metrics, minibatch, batch, dispatched)
    self._settle()
    return "finished"

  def elapsed_s(self) -> float:
    """Seconds of this run so far, those before a resume included."""
    return time.perf_counter() - self._started

  def _between_batches(self) -> bool:
    """Evaluation, checkpoint, publication; returns whether to stop."""
    evaluation = {}
    if self._schedule.due(self._settings.evaluation_every, self.step):
      self._sampler.publish(self.step, self.state.params)
      evaluation = self._evaluate(self.step)
    self._finish_pending(evaluation)
    stopping = self._stop()
    if stopping or self._schedule.due(self._settings.checkpoint_every, self.step):
      self._checkpoints.save(self.state, self.step)
    if not stopping:
      self._sampler.publish(self.step, self.state.params)
    return stopping

  def _settle(self) -> None:
    self._finish_pending()
    if self._schedule.is_boundary(self.step):
      self._checkpoints.save(self.state, self.step)
    self._sampler.publish(self.step, self.state.params)

  def _finish_pending(self, extra: dict[str, float] | None = None) -> None:
    """Fetches, checks and writes the metrics of the previous update."""
    if self._pending is None:
      return
    pending, self._pending = self._pending, None
    row = pending.row | {k: v.item() for k, v in jax.device_get(pending.device_metrics).items()}
    ready = time.perf_counter()
    update_s = ready - max(pending.dispatched, self._last_ready)
    self._last_ready = ready
    mask_PRT = pending.batch.response_mask_PRT
    versions = np.concatenate([r.weight_versions for r in pending.minibatch.rollouts])
    lags = row["step"] - 1 - versions
    sampled, trained = len(versions), int(mask_PRT.sum() + pending.batch.prompt_mask_PS.sum())
    row |= (extra or {}) | {
      "staleness/mean": float(lags.mean()),
      "staleness/max": int(lags.max()),
      "time/sample_s": pending.minibatch.sample_s,
      "time/wait_s": pending.minibatch.wait_s,
      "time/update_s": update_s,
      "throughput/sampled_tokens_per_s": sampled / pending.minibatch.sample_s,
      "throughput/trained_tokens_per_s": trained / update_s,
      "wall_time_s": self.elapsed_s(),
    }
    self._metrics.write(row)
    self._progress.update(row)
    self._save_rollouts(pending, row["step"])
    self._check_finite(pending, row)

  def _save_rollouts(self, pending: Pending, step: int) -> None:
    groups, R = self._settings.save_groups, self._settings.samples_per_prompt
    if groups:
      rollouts = pending.minibatch.rollouts
      kept = rollouts if groups < 0 else rollouts[: groups * R]
      path = self._workdir / "rollouts" / f"{step:06d}.jsonl"
      self._write_rollouts(path, kept, pending.batch.advantages_PR, step)

  def _write_rollouts(
    self, path: Path, rollouts: Sequence[Rollout], advantages_PR: HostArray, step: int
  ) -> None:
    R = self._settings.samples_per_prompt
    decode = self._problems.tokenizer.decode
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
      for i, rollout in enumerate(rollouts):
        record = {
          "update": step,
          "group_id": rollout.group_id,
          "sample": i % R,
          "task": rollout.task,
          "example_id": rollout.example_id,
          "prompt": decode(rollout.prompt_ids),
          "response": decode(rollout.response_ids),
          "answer": self._problems.examples[rollout.example_id].answer,
          "reward": rollout.reward,
          "reward_status": rollout.reward_status,
          "finish": rollout.finish,
          "advantage": float(advantages_PR[i // R, i % R]),
          "behaviour_logprob": float(rollout.behaviour_logprobs.sum()),
          "weight_version": int(rollout.weight_versions.min(initial=step)),
        }
        file.write(json.dumps(record) + "\n")

  def _check_finite(self, pending: Pending, row: dict[str, Any]) -> None:
    bad = [key for key in ("objective/loss", "grad/norm") if not math.isfinite(row[key])]
    if not bad:
      return
    step, folder = row["step"], self._workdir / "failure"
    folder.mkdir(exist_ok=True)
    leaves = [
      jax.tree_util.keystr(path)
      for path, leaf in jax.tree_util.tree_leaves_with_path(self.state.params)
      if not np.isfinite(np.asarray(leaf)).all()
    ]
    report = {"step": step, "metrics": bad, "parameters": leaves}
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    advantages_PR = pending.batch.advantages_PR
    self._write_rollouts(folder / "rollouts.jsonl", pending.minibatch.rollouts, advantages_PR, step)
    raise Diverged(
      f"update {step} is not finite: {', '.join(bad)}; first parameter: "
      f"{leaves[0] if leaves else 'none yet'}; its rollouts are in {folder}"
    )
