"""A config -> supervised fine-tuning: reads the demonstrations, runs the loop, writes the model."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import FrozenConfigDict

from vespo_jax import (
  config_policy,
  files,
  launch,
  metrics,
  parts,
  problem_sets,
  rundirs,
  supervised,
  training,
)
from vespo_jax.config import ConfigError
from vespo_jax.learner import manifest
from vespo_jax.learner.checkpoint import CheckpointError, Checkpoints
from vespo_jax.learner.optimizer import OptimizerSettings, schedule
from vespo_jax.learner.retention import Retention
from vespo_jax.models import partition
from vespo_jax.supervised import Encoded, Likelihood, Scorer, Turns
from vespo_jax.supervised.demonstrations import turns_of
from vespo_jax.tokenizers import Tokenizer
from vespo_jax.types import TrainState


@dataclasses.dataclass(frozen=True)
class Data:
  """The demonstrations of a run, encoded.

  Attributes:
    train, held_out: sequences.
    left_out: how many demonstrations were left out, by reason.
  """

  train: list[Encoded]
  held_out: list[Encoded]
  left_out: Counter[str]

  def counts(self) -> dict[str, Any]:
    """Plain values, as in `result.json`; `digest` is the SHA-256 of what is trained on and of what
    is held out, in their order."""
    digest = hashlib.sha256(b"supervised")
    for sequences in (self.train, self.held_out):
      digest.update(len(sequences).to_bytes(8))
      for one in sequences:
        digest.update(len(one).to_bytes(8) + one.ids.tobytes() + one.trained.tobytes())
    return {
      "train": len(self.train),
      "held_out": len(self.held_out),
      "left_out": dict(self.left_out),
      "digest": digest.hexdigest(),
    }

  def __str__(self) -> str:
    lengths = [len(one) for one in self.train]
    left = "; ".join(f"left out {n}: {reason}" for reason, n in self.left_out.most_common())
    return (
      f"{len(self.train)} sequences of {min(lengths)} to {max(lengths)} tokens to train on, "
      f"{len(self.held_out)} held out" + (f" ({left})" if left else "")
    )


def train(
  config: FrozenConfigDict, workdir: Path, stop: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
  """Runs the fine-tuning of `config` in `workdir`, or resumes it; returns what `result.json` holds.

  `stop` is asked between updates; True saves the run and ends with "preempted".

  Raises:
    ConfigError: if `workdir` holds another run, or policy, data and mesh do not fit the config.
    CheckpointError: if the run cannot be restored or saved.
    Diverged: with the evidence in `failure/`, after `result.json` says so.
  """
  with rundirs.claimed(config, workdir, "sft"), contextlib.ExitStack() as stack:
    return _run(config, workdir, stop, stack)


def summary(result: dict[str, Any], workdir: Path) -> str:
  """What a finished run prints: the held-out loss before and after, and where the model is."""
  lines = ["", f"{result['updates']} updates in {result['wall_time_s']:.0f} s"]
  for when in ("before", "after"):
    if found := result[f"held_out_{when}"]:
      lines.append(f"held-out data {when + ':':7} {Likelihood(**found)}")
  padding = result["padding_fraction"]
  lines += [f"padding: {padding:.1%} of the tokens computed", f"model: {workdir / 'model'}"]
  return "\n".join(lines)


def _run(
  config: FrozenConfigDict, workdir: Path, stop: Callable[[], bool], stack: contextlib.ExitStack
) -> dict[str, Any]:
  started = time.perf_counter()
  mesh = parts.make_mesh(config)
  spec, params, tokenizer = parts.load_policy(config, mesh)
  config_policy.check_spec(config, spec)
  data = _read(config, tokenizer, stack)
  counts = data.counts()
  updates = config.updates
  if config.sft.epochs:
    updates = math.ceil(config.sft.epochs * len(data.train) / config.batch.prompts)
  finished = rundirs.finished_result(workdir, {"updates": updates}, "held_out_after")
  if finished is not None:
    if finished["data"].get("digest") != counts["digest"]:
      raise _other_data(workdir)
    return finished
  method = training.supervised_method(config)
  learner = training.make_learner(config, mesh, spec, params, method, updates)
  del params
  checkpoints = Checkpoints(workdir / "checkpoints", spec, parts.pick(Retention, config.checkpoint))
  stack.callback(checkpoints.close)
  progress = stack.enter_context(metrics.Progress(updates))
  progress.message(str(data))
  reference = counts["digest"]
  if learner.state.frozen is not None:
    reference += manifest.digest_of(learner.state.frozen)
  state = _restore(workdir, checkpoints, learner, reference, updates, progress)
  writer = stack.enter_context(rundirs.open_metrics(config, workdir))
  try:
    writer.truncate(int(state.step))
    rows = metrics.read(writer.path, last=1)
  except ValueError as error:
    raise CheckpointError(f"the run cannot go on: {error}") from error
  settings = _loop_settings(config, mesh, updates)
  scorer = Scorer(learner.anchors.score, mesh, settings.width, settings.unit)
  held_out = None
  before = None
  if data.held_out:
    held_out = lambda state: scorer.likelihood(learner.policy(state), data.held_out)
    new = state is learner.state
    before = _before(workdir, new, held_out, learner.state, progress)
  learner = dataclasses.replace(learner, state=state)  # nothing else holds what was not resumed
  rate = schedule(parts.pick(OptimizerSettings, config.optimizer), updates)
  loop = supervised.Loop(
    workdir=workdir,
    update=learner.update,
    spec=spec,
    state=state,
    mesh=mesh,
    data=data.train,
    decode=tokenizer.decode,
    learning_rate=lambda count: np.asarray(rate(count)).item(),
    held_out=held_out,
    settings=settings,
    checkpoints=checkpoints,
    metrics=writer,
    progress=progress,
    stop=stop,
    reference=reference,
    elapsed_before_s=rows[-1]["wall_time_s"] if rows else time.perf_counter() - started,
  )
  result: dict[str, Any] = {"data": counts, "held_out_before": before}
  try:
    result["stop_reason"] = loop.run()
    if result["stop_reason"] == "finished":
      launch.export(workdir, learner, loop.state, tokenizer)
      result["held_out_after"] = held_out(loop.state).to_dict() if held_out else None
  except BaseException as error:  # whatever ends the run, the result says so; then it goes on
    result["stop_reason"] = f"{type(error).__name__}: {error}"
    raise
  finally:
    padding = [row["data/padding_fraction"] for row in metrics.read(writer.path)]
    result |= {"updates": loop.step, "wall_time_s": loop.elapsed_s()}
    result["padding_fraction"] = float(np.mean(padding)) if padding else 0.0
    files.write(workdir / "result.json", json.dumps(result, indent=2) + "\n")
  return result


def _restore(
  workdir: Path,
  checkpoints: Checkpoints,
  learner: training.Learner,
  reference: str,
  updates: int,
  progress: metrics.Progress,
) -> TrainState:
  """The state to go on from: of the newest good checkpoint, or the initial one.

  Raises CheckpointError; ConfigError if the run was on other data, adapted another policy, or is of
  another command.
  """
  found = learner.restore(
    checkpoints,
    updates,
    lambda place, problem: progress.message(f"a damaged checkpoint, now {place}: {problem}"),
  )
  if found is None:
    return learner.state
  if found.reference != reference:
    raise _other_data(workdir)
  progress.message(f"resuming after update {int(found.state.step)}")
  return found.state


def _other_data(workdir: Path) -> ConfigError:
  return ConfigError(
    f"--workdir={workdir} holds a run on other data or from another policy; give another directory"
  )


def _loop_settings(
  config: FrozenConfigDict, mesh: jax.sharding.Mesh, updates: int
) -> supervised.LoopSettings:
  return supervised.LoopSettings(
    updates=updates,
    examples=config.batch.prompts,
    width=config.sft.row_tokens,
    unit=config.batch.micro_batches * partition.devices(mesh),
    seed=config.seed,
    checkpoint_every=config.checkpoint.every,
    evaluation_every=config.evaluation.every,
    max_skipped=config.guards.max_skipped,
  )


def _before(
  workdir: Path,
  new: bool,
  held_out: Callable[[TrainState], Likelihood],
  initial: TrainState,
  progress: metrics.Progress,
) -> dict[str, Any]:
  """The held-out likelihood of the initial policy, measured where the run is `new`; one that goes
  on from a checkpoint has it already."""
  path = workdir / "held_out_before.json"
  if new or not path.is_file():
    files.write(path, json.dumps(held_out(initial).to_dict(), indent=2) + "\n")
  before = files.read_object(path)
  progress.message(f"held-out data before training: {Likelihood(**before)}")
  return before


def _read(config: FrozenConfigDict, tokenizer: Tokenizer, stack: contextlib.ExitStack) -> Data:
  """The configured demonstrations. Raises ConfigError if there are none to train on."""
  kept = config.sft.held_out
  if config.sft.data:
    conversations = _read_jsonl("sft.data", config.sft.data)
    held_out = conversations[:0]
    if not config.sft.held_out_data:
      order = np.random.default_rng((config.seed, 1)).permutation(len(conversations))
      held_out = [conversations[i] for i in order[:kept]]
      conversations = [conversations[i] for i in np.sort(order[kept:])]
  else:
    train_problems, held_out_problems = problem_sets.open_problems(config, tokenizer, stack)
    conversations, held_out = (
      [turns_of(question, solution) for question, solution in problems.solutions(range(count))]
      for problems, count in (
        (train_problems, len(train_problems.examples)),
        (held_out_problems, min(kept, len(held_out_problems.examples))),
      )
    )
  if config.sft.held_out_data:
    held_out = _read_jsonl("sft.held_out_data", config.sft.held_out_data)
  encoded, left_out = supervised.encode_all(tokenizer, conversations, config.sft.row_tokens)
  encoded_held_out, left_out_too = supervised.encode_all(tokenizer, held_out, config.sft.row_tokens)
  flat = lambda groups: [one for group in groups for one in group]
  data = Data(flat(encoded), flat(encoded_held_out), left_out + left_out_too)
  if not data.train:
    source = f"sft.data={config.sft.data!r}" if config.sft.data else f"task {config.task.name}"
    rest = f", the others left out: {dict(left_out)}" if left_out else ""
    raise ConfigError(
      f"{source} has nothing to train on: {len(conversations) + len(held_out)} demonstrations, "
      f"{len(held_out)} of them held out (sft.held_out={kept}){rest}"
    )
  return data


def _read_jsonl(key: str, path: str) -> Sequence[Turns]:
  try:
    return supervised.read_jsonl(Path(path))
  except ValueError as error:
    raise ConfigError(f"{key}: {error}") from error
