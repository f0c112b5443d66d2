"""The host loop of supervised fine-tuning: packed rows in, updates out, a line of metrics each."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vespo_jax import files, metrics, sharding
from vespo_jax.learner.checkpoint import CheckpointError, Checkpoints, RunState
from vespo_jax.learner.failure import Diverged, explain
from vespo_jax.learner.finish import Finish
from vespo_jax.learner.numerics import (
  CAUSES,
  PER_LEAF,
  SKIPS_LEFT,
  GuardedUpdate,
  leaf_names,
  skips_left,
)
from vespo_jax.learner.update import PER_SEQUENCE, PER_TOKEN
from vespo_jax.models import ModelSpec
from vespo_jax.runtime import Preempted, Snapshot
from vespo_jax.supervised.demonstrations import Encoded
from vespo_jax.supervised.likelihood import Likelihood
from vespo_jax.supervised.packing import Packed, pack
from vespo_jax.tasks import PromptStream
from vespo_jax.types import TrainState

# of the update's metrics, those that say something where there is no behaviour policy
_KEPT = ("objective/loss", "objective/coefficient_mean", "entropy/", "grad/", "optimizer/", "moe/")


@dataclasses.dataclass(frozen=True)
class LoopSettings:
  """The numbers the loop needs.

  Attributes:
    updates: of the whole run.
    examples: of an update.
    width: tokens of a row.
    unit: rows come in multiples of it.
    seed: of the order of the examples.
    checkpoint_every, evaluation_every: updates; 0 is never.
    max_skipped: bad updates in a row that the run goes on without.
  """

  updates: int
  examples: int
  width: int
  unit: int
  seed: int
  checkpoint_every: int
  evaluation_every: int
  max_skipped: int


@dataclasses.dataclass
class Pending:
  """An update whose metrics are still on the device."""

  step: int
  device_metrics: dict[str, Any]
  packed: Packed
  dispatched: float
  finish: Finish


@dataclasses.dataclass
class Loop:
  """Everything one run holds, and the loop over its updates.

  Update u trains on the examples at positions `u * examples` and following of the stream, each
  epoch in an order of its own: nothing but the update number says what comes next.

  Attributes:
    workdir: the run directory.
    update: the compiled update.
    spec: of the policy.
    state: placed on `mesh`; `state.step` updates have been made.
    data: the training sequences.
    decode: token ids -> text, for what a bad update leaves behind.
    learning_rate: of the update that follows so many updates.
    held_out: the likelihood of the held-out data under a state; None where there is none.
    stop: asked between updates; True ends the run early.
    reference: digest of what the run trains on and from, for checkpoints.
    elapsed_before_s: seconds of the run before it was resumed.
  """

  workdir: Path
  update: GuardedUpdate
  spec: ModelSpec
  state: TrainState
  mesh: Mesh
  data: Sequence[Encoded]
  decode: Callable[[np.ndarray], str]
  learning_rate: Callable[[int], float]
  held_out: Callable[[TrainState], Likelihood] | None
  settings: LoopSettings
  checkpoints: Checkpoints
  metrics: metrics.MetricsWriter
  progress: metrics.Progress
  stop: Callable[[], bool]
  reference: str
  elapsed_before_s: float = 0.0

  def __post_init__(self):
    self.step = int(self.state.step)  # committed updates, counted on the host
    self.tokens = self.slots = 0  # real ones, and with padding, of the updates of this process
    self._stream = PromptStream(len(self.data), self.settings.seed)
    self._pending: Pending | None = None
    rows = metrics.read(self.metrics.path)
    # updates without a step of the optimizer's, whose schedule counts the others
    self._skipped = sum(row["guard/tripped"] > 0 for row in rows)
    self._row = rows[-1] if rows else {}  # of the last update
    left = skips_left(rows, self.settings.max_skipped)
    self._skips_left = jax.device_put(left, sharding.replicated(self.mesh))
    self._started = self._last_ready = time.perf_counter()

  def run(self) -> str:
    """Updates until the end, or until `stop`; saves; returns "finished" or "preempted".

    Raises Diverged, with the evidence in `failure/`; CheckpointError if it could not be saved.
    """
    reason = "finished"
    try:
      while self.step < self.settings.updates:
        self._between_updates()
        if self.stop():
          raise Preempted
        self._make_update()
    except Preempted:
      reason = "preempted"
    self._finish_pending()
    self._save()
    self.checkpoints.wait()
    return reason

  def elapsed_s(self) -> float:
    """Seconds of this run so far, those before a resume included."""
    return self.elapsed_before_s + time.perf_counter() - self._started

  def examples(self, update: int) -> list[Encoded]:
    """What update number `update`, from 0, trains on."""
    count = self.settings.examples
    return [self.data[i] for i in self._stream.indices(update * count, count)]

  def _make_update(self) -> None:
    packed = pack(self.examples(self.step), self.settings.width, self.settings.unit)
    batch = jax.device_put(packed.batch, sharding.batch_sharding(self.mesh))
    dispatched = time.perf_counter()
    self.state, device_metrics = self.update(self.state, batch, self._skips_left)
    self._skips_left = device_metrics[SKIPS_LEFT]
    self._finish_pending()
    self.step += 1
    finish = Finish(device_metrics)
    self._pending = Pending(self.step, device_metrics, packed, dispatched, finish)

  def _between_updates(self) -> None:
    """Held-out likelihood and checkpoint, where one is due."""
    due = lambda every: bool(self.step and every and self.step % every == 0)
    evaluate = self.held_out if due(self.settings.evaluation_every) else None
    saves = due(self.settings.checkpoint_every)
    if evaluate or saves:
      self._finish_pending()
    if evaluate:
      found = evaluate(self.state)
      self.progress.message(f"held-out data after update {self.step}: {found}")
      extra = {
        "held_out/nll": found.nll_per_token,
        "held_out/nll_per_sequence": found.nll_per_sequence,
      }
      self.metrics.amend(extra)
      self._row |= extra
    if saves:
      self._save()

  def _save(self) -> None:
    self.checkpoints.save(self._run_state(), self.step, self._row)

  def _run_state(self) -> RunState:
    return RunState(state=self.state, samplers=Snapshot(), monitor={}, reference=self.reference)

  def _finish_pending(self) -> None:
    """Fetches, writes and checks the metrics of the previous update."""
    if self._pending is None:
      return
    pending, self._pending = self._pending, None
    fetched = jax.device_get(pending.device_metrics)
    log_w = fetched.pop(PER_SEQUENCE)["log_w"]
    del fetched[PER_TOKEN]
    causes = [cause for cause, found in fetched.pop(CAUSES).items() if found]
    ended = fetched.pop(SKIPS_LEFT) < 0
    norms = dict(zip(leaf_names(self.state.params), fetched.pop(PER_LEAF), strict=True))
    measured = {key: value.item() for key, value in fetched.items()}
    ready = pending.finish.at_s()
    update_s = ready - max(pending.dispatched, self._last_ready)
    self._last_ready = ready
    packed, step = pending.packed, pending.step
    self.tokens += packed.tokens
    self.slots += packed.batch.response_tokens_PRT.size
    row = {key: value for key, value in measured.items() if key.startswith(_KEPT)}
    row |= {
      "step": step,
      "weight_version": step,
      "data/nll": measured["kl/behaviour_policy_k1"],  # the data's own log-prob of itself is 0
      "data/epoch": step * self.settings.examples / len(self.data),
      "data/tokens": int(packed.batch.response_mask_PRT.sum()),
      "data/padding_fraction": packed.padding_fraction,
      "optimizer/learning_rate": self.learning_rate(step - 1 - self._skipped),
      "guard/tripped": len(causes),
      "time/update_s": update_s,
      "throughput/trained_tokens_per_s": packed.tokens / update_s,
      "wall_time_s": self.elapsed_s(),
    }
    self._row = row
    self.metrics.write(row)
    self.progress.update(row)
    if causes:
      self._skipped += 1
      why = explain(causes, measured, norms, log_w)
      if ended:
        self.step = step - 1
        where = f"see {self.workdir / 'failure'}"
        try:
          self._break_down(row, norms, why)
        except (OSError, CheckpointError) as error:
          where = f"the evidence could not be written: {error}"
        raise Diverged(f"update {step} is bad: {why}; {where}")
      self.progress.message(f"update {step} was skipped: {why}")

  def _break_down(self, row: dict[str, Any], norms: dict[str, float], why: str) -> None:
    """Writes a bad update's metrics, gradient norms and examples, and the state before it."""
    folder = self.workdir / "failure"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    report = {
      "update": row["step"],
      "why": why,
      "metrics": {key: repr(value) for key, value in row.items()},
      "gradient_norms": {name: repr(float(norm)) for name, norm in norms.items()},
    }
    files.write(folder / "report.json", json.dumps(report, indent=2) + "\n")
    shown = [
      {"ids": one.ids.tolist(), "trained": one.trained.tolist(), "text": self.decode(one.ids)}
      for one in self.examples(row["step"] - 1)
    ]
    files.write(folder / "examples.jsonl", "".join(json.dumps(one) + "\n" for one in shown))
    with contextlib.closing(Checkpoints(folder / "checkpoints", self.spec)) as checkpoints:
      checkpoints.save(self._run_state(), self.step)
