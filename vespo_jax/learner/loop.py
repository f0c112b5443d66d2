"""The host loop: rollouts in, updates out, one line of metrics per update, one step late."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.sharding import Mesh

from vespo_jax import metrics, sharding
from vespo_jax.learner.anchors import Anchors
from vespo_jax.learner.batching import make_batch
from vespo_jax.learner.checkpoint import CheckpointError, Checkpoints, RunState
from vespo_jax.learner.failure import Breakdown, Diverged, explain
from vespo_jax.learner.finish import Finish
from vespo_jax.learner.groups import NoSignal
from vespo_jax.learner.guard import Guard
from vespo_jax.learner.intake import Intake, Minibatch, ProblemSet
from vespo_jax.learner.numerics import (
  CAUSES,
  PER_LEAF,
  SKIPS_LEFT,
  GuardedUpdate,
  leaf_names,
  skips_left,
)
from vespo_jax.learner.records import write_rollouts
from vespo_jax.learner.rows import host_metrics
from vespo_jax.learner.saved import RolloutWriter
from vespo_jax.learner.saved_intake import SavedIntake
from vespo_jax.learner.update import PER_SEQUENCE, PER_TOKEN
from vespo_jax.processes import ChildDied
from vespo_jax.runtime import Preempted, Sampler, SamplersFailed, Schedule
from vespo_jax.runtime.schedule import plan_of, record
from vespo_jax.types import Params, TrainBatch, TrainState


@dataclasses.dataclass(frozen=True)
class LoopSettings:
  """The numbers the loop needs: see the keys of the same names in configs/base.py."""

  updates: int
  samples_per_prompt: int
  max_new_tokens: int
  checkpoint_every: int
  evaluation_every: int
  save_groups: int
  save_tokens: bool
  profile_updates: int
  max_skipped: int


@dataclasses.dataclass
class Pending:
  """An update whose metrics are still on the device."""

  row: dict[str, Any]
  device_metrics: dict[str, Any]
  minibatch: Minibatch
  batch: TrainBatch
  dispatched: float
  finish: Finish


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
    rows: the last rows of metrics there are, of those before a resume.
    metrics: None in a process that does not write the run directory: where there are several one
      of them does, checkpoints apart, and all make the same updates.
    evaluate: `(weight_version) -> metrics`, run when these weights are published.
    stop: asked between updates, with one answer for all processes; True ends the run early.
    breakdown: writes down an update that ends the run.
    reference: digest of the reference policy, for checkpoints.
    elapsed_before_s: seconds of the run before it was resumed.
    step: committed updates, counted on the host and never read back from the device.
  """

  workdir: Path
  update: GuardedUpdate
  policy: Callable[[TrainState], Params]
  anchors: Anchors
  state: TrainState
  mesh: Mesh
  sampler: Sampler
  intake: Intake | SavedIntake
  problems: ProblemSet
  schedule: Schedule
  guard: Guard
  saved: RolloutWriter | None
  settings: LoopSettings
  checkpoints: Checkpoints
  metrics: metrics.MetricsWriter | None
  progress: metrics.Progress
  evaluate: Callable[[int], dict[str, float]]
  stop: Callable[[], bool]
  breakdown: Breakdown
  rows: Sequence[dict[str, Any]] = ()
  reference: str = ""
  elapsed_before_s: float = 0.0

  def __post_init__(self):
    self.step = self._first = int(self.state.step)
    self._ordered = False  # whether this process has
    self._published = -1
    self._publish_s = self._checkpoint_s = 0.0
    self._tracing = False
    self._pending: Pending | None = None
    self._row = self.rows[-1] if self.rows else {}  # of the last update
    left = skips_left(self.rows, self.settings.max_skipped)
    self._skips_left = sharding.place(left, sharding.replicated(self.mesh))  # as updates give it
    self._started = self._last_ready = time.perf_counter()

  def run(self) -> str:
    """Updates until the end, or until `stop`; saves; returns "finished" or "preempted".

    Raises:
      NoSignal: if no minibatch can be filled, with the run saved.
      Diverged: with the evidence written by `breakdown`.
      CheckpointError: if the run could not be saved.
      SamplersFailed, ChildDied, TimeoutError: if the samplers or the grader fail, with the run
        saved as far as a single process can do so.
    """
    reason = "finished"
    failed: Exception | None = None
    try:
      while self.step < self.settings.updates:
        if self.schedule.publishes(self.step):
          self._at_publication()
          self.anchors.start_rollout_batch(self.state.params)
        if self.stop():
          raise Preempted
        self._profile()
        self._make_update()
    except Preempted:
      reason = "preempted"
    except NoSignal as error:
      failed = error
    except (SamplersFailed, ChildDied, TimeoutError) as error:
      if jax.process_count() > 1:  # the others do not know, and saving takes all of them
        raise
      failed = error
    self._finish_pending()
    self._end_profile()
    self._save()
    self.checkpoints.wait()
    if failed is not None:
      raise failed
    if reason == "finished":
      self._publish()
    return reason

  def elapsed_s(self) -> float:
    """Seconds of this run so far, those before a resume included."""
    return self.elapsed_before_s + time.perf_counter() - self._started

  def _make_update(self) -> None:
    """One update on the next minibatch, while the device may still be busy with the last."""
    self.intake.order(self.step)
    self._ordered = True
    minibatch = self.intake.get(self.step)
    batch, row = make_batch(
      minibatch.rollouts,
      self.settings.samples_per_prompt,
      self.settings.max_new_tokens,
      None if minibatch.replayed and self.step else self.step,  # all runs of a policy begin alike
    )
    device_batch = sharding.place(batch, sharding.batch_sharding(self.mesh))
    dispatched = time.perf_counter()
    device_batch = self.anchors.complete(device_batch)
    self.state, device_metrics = self.update(self.state, device_batch, self._skips_left)
    self._skips_left = device_metrics[SKIPS_LEFT]
    finish = Finish(device_metrics)
    self._finish_pending()
    # while the device was busy with the update before, waiting cost nothing
    wait_s = sum(max(0.0, end - max(start, self._last_ready)) for start, end in minibatch.waits)
    self.step += 1
    row |= {"step": self.step, "weight_version": self.step, "time/wait_s": wait_s}
    self._pending = Pending(row, device_metrics, minibatch, batch, dispatched, finish)

  def _profile(self) -> None:
    """Traces the wanted updates, from the second of this process on: the first compiles."""
    made, wanted = self.step - self._first, self.settings.profile_updates
    if self.metrics is not None and wanted and made == 1:
      self._finish_pending()  # nothing of the update before is traced
      jax.profiler.start_trace(str(self.workdir / "profile"))
      self._tracing = True
    if made > wanted:
      self._end_profile()

  def _end_profile(self) -> None:
    if self._tracing:
      self._finish_pending()
      jax.profiler.stop_trace()
      self._tracing = False

  def _at_publication(self) -> None:
    """Evaluation, checkpoint, publication."""
    self._finish_pending()
    evaluated = "evaluation/accuracy" in self._row  # by the run that was resumed here
    if self.schedule.due(self.settings.evaluation_every, self.step) and not evaluated:
      self._publish()
      evaluation = self.evaluate(self.step)
      if self.metrics is not None:
        self.metrics.amend(evaluation)
      self._row |= evaluation
    if self.schedule.due(self.settings.checkpoint_every, self.step):
      self._save()
    self._publish()

  def _publish(self) -> None:
    if self._published != self.step:
      started = time.perf_counter()
      self.sampler.publish(self.step, self.policy(self.state))
      self._publish_s = time.perf_counter() - started
      self._published = self.step

  def _save(self) -> None:
    """Starts saving the run, of which every row of metrics is written. Before a resumed run orders
    anything it is what its checkpoint holds, whose weights are those that open orders need."""
    if self._first and not self._ordered:
      return
    started = time.perf_counter()
    self.checkpoints.save(self._run_state(), self.step, self._row)
    self._checkpoint_s = time.perf_counter() - started

  def _run_state(self) -> RunState:
    within = not self.schedule.publishes(self.step)  # a rollout batch that began with other weights
    samplers = self.intake.snapshot(within, self.step)
    return RunState(
      self.state,
      samplers,
      self.guard.monitor.to_dict(),
      self.reference,
      self.intake.state(),
      self.intake.rates(),
      self.anchors.adapters if within else None,
    )

  def _finish_pending(self) -> None:
    """Fetches, writes and checks the metrics of the previous update."""
    if self._pending is None:
      return
    pending, self._pending = self._pending, None
    fetched = jax.device_get(pending.device_metrics)
    columns, per_token = fetched.pop(PER_SEQUENCE), fetched.pop(PER_TOKEN)
    log_ratio_PRT = per_token["log_ratio"]
    causes = [cause for cause, found in fetched.pop(CAUSES).items() if found]
    ended = fetched.pop(SKIPS_LEFT) < 0
    norms = dict(zip(leaf_names(self.state.params), fetched.pop(PER_LEAF), strict=True))
    row = pending.row | {key: value.item() for key, value in fetched.items()}
    if not row.get("mismatch/tokens"):  # nothing was sampled by the weights that were updated
      row = {key: value for key, value in row.items() if not key.startswith("mismatch/")}
    ready = pending.finish.at_s()  # some time ago, where the next minibatch was waited for
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
    if np.isfinite(log_ratio_PRT).all():
      log_ratio_BT = log_ratio_PRT.reshape(-1, log_ratio_PRT.shape[-1])
      row |= self.guard.check(minibatch, log_ratio_BT, version)
    trained = int(np.asarray(batch.response_mask_PRT).sum() + batch.prompt_mask_PS.sum())
    row |= {
      "guard/tripped": len(causes),
      "time/publish_s": self._publish_s,
      "time/checkpoint_s": self._checkpoint_s,
      "time/update_s": update_s,
      "throughput/trained_tokens_per_s": trained / update_s,
      "wall_time_s": self.elapsed_s(),
    }
    self._row, self._checkpoint_s, self._publish_s = row, 0.0, 0.0
    if self.metrics is not None:
      self.metrics.write(row)
    self.progress.update(row)
    self._record(minibatch, columns, per_token if self.settings.save_tokens else {})
    if causes:
      why = explain(causes, row, norms, columns["log_w"])
      if ended:
        self._break_down(minibatch, columns, per_token, norms, why)
      self.progress.message(f"update {row['step']} was skipped: {why}")

  def _record(
    self,
    minibatch: Minibatch,
    columns: dict[str, np.ndarray],
    per_token: dict[str, np.ndarray],
  ) -> None:
    """Writes what was trained on, as far as it is kept."""
    if self.metrics is None:
      return
    step, rollouts = self._row["step"], minibatch.rollouts
    record(self.workdir / "schedule.jsonl", step - 1, plan_of(rollouts))
    if self.saved is not None:
      self.saved.write(step, rollouts)
    groups = self.settings.save_groups
    if groups:
      kept = rollouts if groups < 0 else rollouts[: groups * self.settings.samples_per_prompt]
      path = self.workdir / "rollouts" / f"{step:06d}.jsonl"
      write_rollouts(path, kept, columns, per_token, self.problems, step)

  def _break_down(
    self,
    minibatch: Minibatch,
    columns: dict[str, np.ndarray],
    per_token: dict[str, np.ndarray],
    norms: dict[str, float],
    why: str,
  ) -> NoReturn:
    """Ends the run with what a bad update leaves behind; the state is still that before it."""
    update = self._row["step"]
    self.step = update - 1
    where = f"the evidence is in {self.breakdown.folder}"
    run, newest = self._run_state(), self.checkpoints.newest()
    try:
      self.breakdown.write(run, minibatch, self._row, columns, per_token, norms, why, newest)
    except (OSError, CheckpointError) as error:
      where = f"the evidence could not be written: {error}"
    raise Diverged(f"update {update} is bad: {why}; {where}")
