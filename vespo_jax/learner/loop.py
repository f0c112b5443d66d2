"""The host loop: rollouts in, updates out, one line of metrics per update, one step late."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vespo_jax import sharding
from vespo_jax.learner.anchors import Anchors
from vespo_jax.learner.batching import make_batch
from vespo_jax.learner.checkpoint import Checkpoints
from vespo_jax.learner.guard import Guard
from vespo_jax.learner.intake import Intake, Minibatch, Problems, SavedIntake
from vespo_jax.learner.records import write_failure, write_rollouts
from vespo_jax.learner.rows import host_metrics
from vespo_jax.learner.saved import RolloutWriter
from vespo_jax.learner.update import PER_SEQUENCE, PER_TOKEN, Update
from vespo_jax.metrics import MetricsWriter, Progress
from vespo_jax.runtime import Sampler, Schedule
from vespo_jax.runtime.schedule import plan_of, record
from vespo_jax.types import Params, TrainBatch, TrainState


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
  profile_updates: int


@dataclasses.dataclass
class Pending:
  """An update whose metrics are still on the device."""

  row: dict[str, Any]
  device_metrics: dict[str, Any]
  minibatch: Minibatch
  batch: TrainBatch
  dispatched: float


@dataclasses.dataclass
class Loop:
  """Everything one training run holds, and the loop over its updates.

  Attributes:
    workdir: the run directory.
    update: the compiled update.
    policy: the model's parameters of a state, merged where adapters are trained.
    anchors: the proximal and the reference policy, where the loss needs them.
    guard: judges what the samplers deliver.
    saved: where every rollout is written, if they are kept.
    state: placed on `mesh`; `state.step` updates have been made.
    evaluate: `(weight_version) -> metrics`, run when these weights are published.
    stop: asked before a publication; True ends the run early.
    elapsed_before_s: seconds of the run before it was resumed.
    step: committed updates, counted on the host and never read back from the device.
  """

  workdir: Path
  update: Update
  policy: Callable[[TrainState], Params]
  anchors: Anchors
  state: TrainState
  mesh: Mesh
  sampler: Sampler
  intake: Intake | SavedIntake
  problems: Problems
  schedule: Schedule
  guard: Guard
  saved: RolloutWriter | None
  settings: LoopSettings
  checkpoints: Checkpoints
  metrics: MetricsWriter
  progress: Progress
  evaluate: Callable[[int], dict[str, float]]
  stop: Callable[[], bool]
  elapsed_before_s: float = 0.0

  def __post_init__(self):
    self.step = self._first = int(self.state.step)
    self._published = -1
    self._publish_s, self._tracing = 0.0, False
    self._pending: Pending | None = None
    self._started = self._last_ready = time.perf_counter()

  def run(self) -> str:
    """Updates until the end, or until `stop`; returns why it stopped: "finished" or "preempted".

    Raises:
      Diverged: with the evidence written to `failure/`.
      SamplersFailed, ChildDied, TimeoutError: if the samplers or the grader fail.
    """
    while self.step < self.settings.updates:
      if self.schedule.publishes(self.step):
        if self._at_publication():
          return "preempted"
        self.anchors.start_rollout_batch(lambda: self.policy(self.state))
      self._profile()
      self.intake.order(self.step)
      minibatch = self.intake.get(self.step)
      batch, row = make_batch(
        minibatch.rollouts,
        self.settings.samples_per_prompt,
        self.settings.max_new_tokens,
        self.step,
      )
      device_batch = jax.device_put(batch, sharding.batch_sharding(self.mesh))
      dispatched = time.perf_counter()
      device_batch = self.anchors.complete(device_batch)
      self.state, device_metrics = self.update(self.state, device_batch)
      self._finish_pending()
      self.step += 1
      row |= {"step": self.step, "weight_version": self.step}
      self._pending = Pending(row, device_metrics, minibatch, batch, dispatched)
    self._finish_pending()
    self._profile()
    if self.schedule.publishes(self.step):
      self.checkpoints.save(self.state, self.guard.monitor.to_dict(), self.step)
    self._publish()
    return "finished"

  def elapsed_s(self) -> float:
    """Seconds of this run so far, those before a resume included."""
    return self.elapsed_before_s + time.perf_counter() - self._started

  def _profile(self) -> None:
    """Traces the wanted updates, from the second of this process on: the first compiles."""
    made, wanted = self.step - self._first, self.settings.profile_updates
    if wanted and made == 1:
      jax.profiler.start_trace(str(self.workdir / "profile"))
      self._tracing = True
    if self._tracing and (made > wanted or self.step == self.settings.updates):
      jax.profiler.stop_trace()
      self._tracing = False

  def _at_publication(self) -> bool:
    """Evaluation, checkpoint, publication; returns whether to stop."""
    evaluation = {}
    if self.schedule.due(self.settings.evaluation_every, self.step):
      self._publish()
      evaluation = self.evaluate(self.step)
    self._finish_pending(evaluation)
    stopping = self.stop()
    if stopping or self.schedule.due(self.settings.checkpoint_every, self.step):
      self.checkpoints.save(self.state, self.guard.monitor.to_dict(), self.step)
    if not stopping:
      self._publish()
    return stopping

  def _publish(self) -> None:
    if self._published != self.step:
      started = time.perf_counter()
      self.sampler.publish(self.step, self.policy(self.state))
      self._publish_s = time.perf_counter() - started
      self._published = self.step

  def _finish_pending(self, extra: dict[str, float] | None = None) -> None:
    """Fetches, writes and checks the metrics of the previous update."""
    if self._pending is None:
      return
    pending, self._pending = self._pending, None
    fetched = jax.device_get(pending.device_metrics)
    columns, per_token = fetched.pop(PER_SEQUENCE), fetched.pop(PER_TOKEN)
    row = pending.row | {key: value.item() for key, value in fetched.items()}
    if not row.get("mismatch/tokens"):  # nothing was sampled by the weights that were updated
      row = {key: value for key, value in row.items() if not key.startswith("mismatch/")}
    ready = time.perf_counter()
    update_s = ready - max(pending.dispatched, self._last_ready)
    self._last_ready = ready
    minibatch, batch, version = pending.minibatch, pending.batch, row["step"] - 1
    row |= host_metrics(
      minibatch,
      batch,
      columns,
      version=version,
      published=self.schedule.published(version),
      max_new_tokens=self.settings.max_new_tokens,
    )
    log_ratio_PRT = per_token["log_ratio"]
    row |= self.guard.check(minibatch, log_ratio_PRT.reshape(-1, log_ratio_PRT.shape[-1]), version)
    trained = int(np.asarray(batch.response_mask_PRT).sum() + batch.prompt_mask_PS.sum())
    row |= (extra or {}) | {
      "time/publish_s": self._publish_s,
      "time/update_s": update_s,
      "throughput/trained_tokens_per_s": trained / update_s,
      "wall_time_s": self.elapsed_s(),
    }
    self.metrics.write(row)
    self.progress.update(row)
    self._record(pending, row, columns)

  def _record(self, pending: Pending, row: dict[str, Any], columns: dict[str, np.ndarray]) -> None:
    step, rollouts = row["step"], pending.minibatch.rollouts
    record(self.workdir / "schedule.jsonl", step - 1, plan_of(rollouts))
    if self.saved is not None:
      self.saved.write(step, rollouts)
    groups = self.settings.save_groups
    if groups:
      kept = rollouts if groups < 0 else rollouts[: groups * self.settings.samples_per_prompt]
      path = self.workdir / "rollouts" / f"{step:06d}.jsonl"
      write_rollouts(path, kept, columns, self.problems, step)
    bad = {k: row[k] for k in ("objective/loss", "grad/norm") if not math.isfinite(row[k])}
    if bad:
      folder = self.workdir / "failure"
      leaves = write_failure(folder, step, bad, self.state.params, rollouts, columns, self.problems)
      raise Diverged(
        f"update {step} is not finite: {', '.join(bad)}; non-finite parameters: "
        f"{', '.join(leaves[:3]) or 'none'}; its rollouts are in {folder}"
      )
