"""Run state on disk (orbax): what an interrupted run needs to continue bit for bit.

Sampling keys and what may be ordered next are functions of the update number and the config. What
is not is saved: parameters and optimizer state; the published weights that orders under way, and
those that may replace their groups, are sampled with, of which the newest is the proximal policy;
the rollouts that were sampled and not yet trained on; which prompts were asked, and how often they
were solved; what the integrity monitor knows. The reference policy is the run's
initial one and is loaded again; its digest is saved.

A checkpoint is a directory that appears whole: it is written under another name, with a manifest of
the size and SHA-256 of each of its files, and then renamed. It is restored only if the manifest
holds; one that does not is set aside and never written to again.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from vespo_jax.hosts import Hosts
from vespo_jax.learner import manifest
from vespo_jax.learner.retention import KEEP_ALL, Retention
from vespo_jax.models import ModelSpec, abstract
from vespo_jax.runtime import Snapshot, messages
from vespo_jax.types import Params, TrainState

FORMAT = 2
_TIMES = "_CHECKPOINT_METADATA"  # orbax notes there when it was done; restoring does not need it


class CheckpointError(RuntimeError):
  """The run cannot go on from its checkpoints, or cannot write one."""


@dataclasses.dataclass(frozen=True)
class RunState:
  """A run between two updates.

  Attributes:
    state: after `state.step` updates; what is frozen is not saved.
    samplers: published weights and finished rollouts, as the samplers had them.
    monitor: the integrity monitor's plain values.
    reference: digest of the reference policy, "" where there is none.
    prompts: what of the prompt stream was given out, plain values, see `Ledger`.
    rates: success rates of the prompts, float32 by task, see `Curricula`.
    proximal: the adapters of the proximal policy, where that is needed and not of `state`.
  """

  state: TrainState
  samplers: Snapshot
  monitor: dict[str, Any]
  reference: str = ""
  prompts: dict[str, Any] = dataclasses.field(default_factory=dict)
  rates: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  proximal: Params | None = None


class Checkpoints:
  """The checkpoints of one run.

  Args:
    directory: made if missing.
    spec: of the published weights.
    retention: which are kept.
    hosts: all of which save and restore together, in a directory that they share.
    published: shapes, types and shardings that published weights are restored to; None: host
      arrays.
    read_only: change nothing there: the run may be under way in another process.
  """

  def __init__(
    self,
    directory: Path,
    spec: ModelSpec,
    retention: Retention = KEEP_ALL,
    hosts: Hosts | None = None,
    *,
    published: Params | None = None,
    read_only: bool = False,
  ):
    self._directory, self._retention = directory.resolve(), retention
    self._published = published or jax.tree.map(
      lambda leaf: np.empty(leaf.shape, np.float32), abstract(spec)
    )
    self._hosts, self._read_only = hosts or Hosts(), read_only
    # of the first save alone: that it has not the metric by which some are kept
    self._tells = retention.keep_best > 0 and self._hosts.first
    self._known: dict[int, Any] = {}  # what checkpoints of this run are about, by step
    self._unreadable: list[tuple[Path, str]] = []  # were set aside
    if not read_only:
      self._hosts.tell(self._tidy)
    # nothing is cleaned up, and of other checkpoints than the restored one nothing is read
    reading = ocp.CheckpointManagerOptions(create=False, lightweight_initialize=True)
    writing = ocp.CheckpointManagerOptions(
      create=True,
      cleanup_tmp_directories=True,
      best_fn=retention.score,
      preservation_policy=retention.policy(),
      async_options=ocp.options.AsyncOptions(post_finalization_callback=self._write_manifest),
    )
    options = reading if read_only else writing
    arrays = ("state", "weights", "results", "rates", "proximal")
    handlers: dict[str, Any] = {name: ocp.StandardCheckpointHandler() for name in arrays}
    handlers["about"] = ocp.JsonCheckpointHandler()
    self._manager = ocp.CheckpointManager(self._directory, options=options, item_handlers=handlers)

  def save(self, run: RunState, step: int, metrics: Mapping[str, float] | None = None) -> None:
    """Starts saving the run after `step` updates; returns once its arrays may change.

    A save under way is waited for. What is saved already is not saved again; a checkpoint that
    this process knows, of as many updates but with fewer rollouts, is replaced. `metrics` are those
    of the last update. Raises CheckpointError if that save failed, for instance on a full disk, or
    there are checkpoints of later updates; older checkpoints are intact.
    """
    results = {str(r.order_id): messages.encode(r) for r in run.samplers.results}
    weights = {str(version): params for version, params in run.samplers.weights.items()}
    state = dataclasses.replace(run.state, frozen=None)
    about = {
      "format": FORMAT,
      "state": _forms(state),
      "weights": sorted(run.samplers.weights),
      "results": {
        str(r.order_id): {"bytes": len(results[str(r.order_id)]), "worker": r.worker}
        for r in run.samplers.results
      },
      "monitor": run.monitor,
      "reference": run.reference,
      "prompts": run.prompts,
      "rates": {task: len(rates) for task, rates in run.rates.items()},
      "proximal": run.proximal is not None,
    }
    about = json.loads(json.dumps(about))  # as it will be read
    there = step in self._manager.all_steps()
    if there and self._hosts.tell(lambda: self._known.get(step, about) == about):
      return
    if there:
      self.wait()
      self._hosts.tell(lambda: str(self._move(step, self._replaced)))
      self._manager.reload()
    items = {
      "about": ocp.args.JsonSave(about),
      "state": ocp.args.StandardSave(state),
    }
    if weights:
      items["weights"] = ocp.args.StandardSave(weights)
    if results:
      arrays = {name: np.frombuffer(data, np.uint8) for name, data in results.items()}
      items["results"] = ocp.args.StandardSave(arrays)
    if run.rates:
      items["rates"] = ocp.args.StandardSave(run.rates)
    if run.proximal is not None:
      items["proximal"] = ocp.args.StandardSave(run.proximal)
    name = self._retention.metric
    metric = (metrics or {}).get(name)
    known = {} if metric is None else {name: float(metric)}
    if metrics and self._tells:
      self._tells = False
      if not known:
        near = ", ".join(difflib.get_close_matches(name, metrics))
        print(
          f"WARNING: update {step} has no checkpoint.best_metric={name!r}, so that its checkpoint "
          f"counts as the worst; metrics of a like name: {near or 'none'}",
          file=sys.stderr,
          flush=True,
        )
    args = ocp.args.Composite(**items)
    if not self._checked(lambda: self._manager.save(step, args=args, metrics=known)):
      raise CheckpointError(
        f"update {step} is not saved: {self._directory} has later ones, to {self.newest()}"
      )
    self._known[step] = about
    if there:
      self.wait()
      self._hosts.tell(self._tidy)

  def restore(
    self,
    like: TrainState,
    at_most: int,
    set_aside: Callable[[Path, str], None],
    make_room: Callable[[], None] = lambda: None,
  ) -> RunState | None:
    """The newest whole run of at most `at_most` updates; None if there are no checkpoints.

    Args:
      like: shapes, types and shardings to restore to, see `abstract_like`.
      at_most: updates.
      set_aside: called with the new place of every damaged checkpoint that was passed over, and
        what is wrong with it; read-only, they stay where they are.
      make_room: called before the state is read: nothing will need what it takes the place of.

    Raises:
      CheckpointError: if it is of another format or policy, or all checkpoints are damaged.
    """
    step = self._hosts.tell(lambda: self._newest_whole(at_most, set_aside))
    if not self._hosts.first:
      self._manager.reload()  # the first may have set some aside
    if step is None:
      return None
    make_room()
    return self._read(step, like)

  def newest(self) -> int | None:
    """The step of the newest checkpoint that is whole on disk."""
    return self._manager.latest_step()

  def wait(self) -> None:
    """Waits for a save under way. Raises CheckpointError if it failed."""
    self._checked(self._manager.wait_until_finished)

  def close(self) -> None:
    """Waits for a save under way and lets go."""
    self._checked(self._manager.close)

  @property
  def _damaged(self) -> Path:
    return self._directory.with_name("damaged")

  @property
  def _replaced(self) -> Path:
    return self._directory.with_name("replaced")

  def _tidy(self) -> None:
    """Puts back what was being replaced when a process ended, if nothing took its place; and sets
    aside checkpoints whose metrics cannot be read, which the manager reads of all of them."""
    for place in self._replaced.glob("*"):
      if not (self._directory / place.name).is_dir():
        place.rename(self._directory / place.name)
    shutil.rmtree(self._replaced, ignore_errors=True)
    for path in self._directory.glob("*/metrics/metrics"):
      if not path.parts[-3].isdecimal():  # a save that never ended, which the manager removes
        continue
      try:
        json.loads(path.read_bytes())
      except ValueError as error:
        problem = manifest.damage(path.parents[1]) or f"metrics/metrics is not JSON ({error})"
        moved = self._move(int(path.parts[-3]), self._damaged)
        self._unreadable.append((moved, problem))

  def _newest_whole(self, at_most: int, set_aside: Callable[[Path, str], None]) -> int | None:
    """The newest step that can be restored; damaged ones are set aside."""
    for place, problem in self._unreadable:
      set_aside(place, problem)
    steps = sorted((s for s in self._manager.all_steps() if s <= at_most), reverse=True)
    for step in steps:
      problem = manifest.damage(self._directory / str(step))
      if problem is None:
        return step
      set_aside(self._set_aside(step), problem)
    if steps and self._read_only:
      raise CheckpointError(f"every checkpoint in {self._directory} is damaged")
    if steps or self._unreadable:
      raise CheckpointError(
        f"every checkpoint is damaged; they are in {self._damaged}. Nothing was overwritten: give "
        "another --workdir to begin again"
      )
    return None

  def _read(self, step: int, like: TrainState) -> RunState:
    about = self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))
    about: Any = about["about"]
    place = self._directory / str(step)
    if about.get("format") != FORMAT:
      raise CheckpointError(
        f"{place} has format {about.get('format')}; this version reads format {FORMAT}"
      )
    like = dataclasses.replace(like, frozen=None)
    _check_forms(about["state"], _forms(like), place)
    items = {"state": ocp.args.StandardRestore(like)}
    if about["weights"]:
      weights = {str(version): self._published for version in about["weights"]}
      items["weights"] = ocp.args.StandardRestore(weights)
    if about["results"]:
      sizes = {name: np.empty(of["bytes"], np.uint8) for name, of in about["results"].items()}
      items["results"] = ocp.args.StandardRestore(sizes)
    if about["rates"]:
      rates = {task: np.empty(size, np.float32) for task, size in about["rates"].items()}
      items["rates"] = ocp.args.StandardRestore(rates)
    if about.get("proximal"):  # older ones say nothing of it
      items["proximal"] = ocp.args.StandardRestore(like.params)
    restored: Any = self._manager.restore(step, args=ocp.args.Composite(**items))
    results = [
      dataclasses.replace(
        messages.decode_result(restored["results"][name].tobytes()), worker=of["worker"]
      )
      for name, of in about["results"].items()
    ]
    weights = {version: restored["weights"][str(version)] for version in about["weights"]}
    self._known[step] = about
    samplers = Snapshot(results, weights)
    return RunState(
      restored["state"],
      samplers,
      about["monitor"],
      about["reference"],
      about["prompts"],
      {task: restored["rates"][task] for task in about["rates"]},
      restored["proximal"] if "proximal" in items else None,
    )

  def _set_aside(self, step: int) -> Path:
    """Moves a checkpoint out of the way of later ones of the same step, if it may be moved."""
    if self._read_only:
      return self._directory / str(step)
    place = self._move(step, self._damaged)
    self._manager.reload()
    return place

  def _move(self, step: int, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    numbers = itertools.count(1)
    place = folder / str(step)
    while place.exists():
      place = folder / f"{step}.{next(numbers)}"
    (self._directory / str(step)).rename(place)
    return place

  def _write_manifest(self) -> None:
    """Runs when every file of the checkpoint being saved is written, before it gets its name."""
    if jax.process_index() == 0:
      for unnamed in self._directory.glob("*orbax-checkpoint-tmp*"):
        manifest.write(unnamed, leave_out=_TIMES)

  def _checked(self, action: Callable[[], Any]) -> Any:
    try:
      return action()
    except (OSError, ValueError, RuntimeError) as error:  # what tensorstore and orbax raise
      raise CheckpointError(f"a checkpoint could not be written: {error}") from error


def abstract_like(state: TrainState, shardings: Any) -> TrainState:
  """Shapes, types and shardings of a state, as `Checkpoints.restore` needs them."""
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
    state,
    shardings,
  )


def _forms(state: TrainState) -> dict[str, str]:
  """Type and shape of every array, by its path."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype.name}{list(leaf.shape)}"
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
  }


def _check_forms(there: Mapping[str, str], here: Mapping[str, str], place: Path) -> None:
  """Raises CheckpointError naming the first array that is not there, not wanted, or differs."""
  for name in sorted(there.keys() | here.keys()):
    if there.get(name) != here.get(name):
      raise CheckpointError(
        f"{place} does not fit this run: {name} is {there.get(name, 'missing')} there and "
        f"{here.get(name, 'missing')} here"
      )
