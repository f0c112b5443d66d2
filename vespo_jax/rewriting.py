"""A config -> a rewritten data set: samples, grades, writes, and measures the gap to the policy."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from vespo_jax import files, metrics, parts, problem_sets, rundirs, supervised, training
from vespo_jax.config import ConfigError
from vespo_jax.hosts import Hosts
from vespo_jax.learner import manifest
from vespo_jax.learner.mixed_problems import Mixture
from vespo_jax.learner.update import compile_score
from vespo_jax.models import ModelSpec, partition
from vespo_jax.runtime import Preempted
from vespo_jax.supervised import Cascade, Scorer
from vespo_jax.supervised.cascade import TAGS
from vespo_jax.supervised.demonstrations import turns_of
from vespo_jax.tokenizers import Tokenizer
from vespo_jax.types import Params

# in the run directory: the records, and the SHA-256 of the policy whose words they are
RECORDS, POLICY = "rewritten.jsonl", "policy.sha256"


def train(
  config: FrozenConfigDict, workdir: Path, stop: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
  """Rewrites the configured problems into `workdir`, or goes on; returns what `result.json` holds.

  `stop` is asked between pieces of `batch.prompts` problems and while samples are waited for.

  Raises ConfigError, SamplersFailed, ChildDied and TimeoutError as `launch.train`; ConfigError,
  too, if another policy is at `policy.path` than when it was begun.
  """
  with rundirs.claimed(config, workdir, "rewrite"), contextlib.ExitStack() as stack:
    finished = rundirs.finished_result(workdir, {}, "gap_after")
    return finished if finished is not None else _run(config, workdir, stop, stack)


def summary(result: dict[str, Any], workdir: Path) -> str:
  """What a finished run prints: what came from where, and the gap before and after."""
  tags = ", ".join(f"{result['tags'][tag]} {tag}" for tag in TAGS)
  lines = ["", f"{result['problems']} problems in {result['wall_time_s']:.0f} s: {tags}"]
  for when, text in (("before", "the expert's solutions"), ("after", "the rewritten ones")):
    gap = result[f"gap_{when}"].get("all")
    if gap:
      lines.append(f"{text} under the policy: {supervised.Likelihood(**gap)}")
  return "\n".join([*lines, f"data: {workdir / RECORDS}"])


def _run(
  config: FrozenConfigDict,
  workdir: Path,
  stop: Callable[[], bool],
  stack: contextlib.ExitStack,
) -> dict[str, Any]:
  started = time.perf_counter() - _elapsed_before(workdir)
  mesh = parts.make_mesh(config)
  spec, params, tokenizer = parts.load_policy(config, mesh)
  hosts = Hosts(stop)
  pieces = parts.open_pieces(config, mesh, spec, workdir, hosts)
  sampler = parts.open_sampler(_with_samples(config), spec, tokenizer, stack, hosts, pieces)
  problems, _ = problem_sets.open_problems(config, tokenizer, stack)
  if config.rewrite.problems and isinstance(problems, Mixture):  # of each task its share
    problems = problem_sets.interleaved(config, problems.parts)
  there = len(problems.examples)
  count = min(config.rewrite.problems or there, there)
  sampler.publish(0, params)
  settings = lambda samples: parts.sampler_settings(config, tokenizer, samples_per_prompt=samples)
  cascade = Cascade(
    sampler,
    problems,
    settings(config.rewrite.samples),
    settings(config.rewrite.guided_samples),
    config.rewrite.guide,
    seed=config.seed,
    timeout_s=config.runtime.timeout_s,
  )
  path, piece = workdir / RECORDS, config.batch.prompts
  _same_policy(config, workdir, params, begun=path.is_file() and path.stat().st_size > 0)
  records, done = _cut_back(path, piece, count)
  progress = stack.enter_context(metrics.Progress(count, unit="problem"))
  file = stack.enter_context(path.open("a"))
  result: dict[str, Any] = {"stop_reason": "preempted"}
  try:
    while done < count:
      if stop():
        raise Preempted
      indices = range(done, min(done + piece, count))
      new = [record.to_dict() for record in cascade.rewrite(indices)]
      file.write("".join(json.dumps(record) + "\n" for record in new))
      file.flush()
      records += new
      done = indices.stop
      progress.update({"step": done})
      tags = Counter(record["tag"] for record in records)
      progress.message(f"{done} problems: {', '.join(f'{tags[tag]} {tag}' for tag in TAGS)}")
    result |= _gap(config, mesh, spec, params, tokenizer, records)
    result["stop_reason"] = "finished"
  except Preempted:
    pass
  tags = Counter(record["tag"] for record in records)
  result |= {"problems": done, "tags": {tag: tags[tag] for tag in TAGS}}
  result["wall_time_s"] = time.perf_counter() - started
  files.write(workdir / "result.json", json.dumps(result, indent=2) + "\n")
  return result


def _elapsed_before(workdir: Path) -> float:
  """Seconds of the attempts before this one, as far as they could say so."""
  path = workdir / "result.json"
  return json.loads(path.read_text())["wall_time_s"] if path.is_file() else 0.0


def _with_samples(config: FrozenConfigDict) -> FrozenConfigDict:
  """The config with as many samples of a prompt as there are at once, which is what the samplers'
  slots are counted by."""
  values = ConfigDict(config.to_dict())
  values.batch.samples_per_prompt = max(config.rewrite.samples, config.rewrite.guided_samples)
  return FrozenConfigDict(values)


def _cut_back(path: Path, piece: int, count: int) -> tuple[list[dict[str, Any]], int]:
  """The records of an earlier attempt and how many problems they are of, without those of a last
  piece that may be only half there; these are cut off the file. A problem need not have one."""
  lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
  records = [json.loads(line) for line in lines if line.endswith(b"\n")]
  if not records:
    done = 0
  elif (last := records[-1]["example_id"] + 1) == count or last % piece == 0:
    done = last
  else:
    done = last // piece * piece
  kept = [record for record in records if record["example_id"] < done]
  if len(kept) < len(lines):
    files.write(path, b"".join(lines[: len(kept)]))
  return kept, done


def _same_policy(config: FrozenConfigDict, workdir: Path, params: Params, begun: bool) -> None:
  """Keeps whose words the records are. Raises ConfigError if those there are another policy's."""
  path, digest = workdir / POLICY, manifest.digest_of(params)
  if begun and path.is_file() and path.read_text().strip() != digest:
    raise ConfigError(
      f"--workdir={workdir} was begun with another policy than policy.path={config.policy.path!r} "
      "holds now; give another directory"
    )
  files.write(path, digest + "\n")


def _gap(
  config: FrozenConfigDict,
  mesh: jax.sharding.Mesh,
  spec: ModelSpec,
  params: Params,
  tokenizer: Tokenizer,
  records: Sequence[dict[str, Any]],
) -> dict[str, Any]:
  """`gap_before` and `gap_after`: how likely the policy finds the expert's solutions, and what came
  in their place, of all problems that have both and by tag; and how many are too long for it."""
  width = config.sft.row_tokens
  pairs = [record for record in records if record["expert"]]
  texts = lambda key: [turns_of(record["prompt"], record[key]) for record in pairs]
  before, _ = supervised.encode_all(tokenizer, texts("expert"), width)
  after, _ = supervised.encode_all(tokenizer, texts("response"), width)
  kept = [i for i in range(len(pairs)) if before[i] and after[i]]
  result: dict[str, Any] = {"gap_before": {}, "gap_after": {}, "unmeasured": len(pairs) - len(kept)}
  if not kept:
    return result
  loss = training.supervised_method(config).loss
  unit = loss.micro_batches * partition.devices(mesh)
  scorer = Scorer(compile_score(mesh, spec, loss), mesh, width, unit)
  tags = np.array([pairs[i]["tag"] for i in kept])
  for key, encoded in (("gap_before", before), ("gap_after", after)):
    logprob_N, tokens_N = scorer.logprobs(params, [encoded[i][0] for i in kept])
    for name in ("all", *TAGS):
      chosen = tags == name if name != "all" else np.ones(len(kept), bool)
      if chosen.any():
        found = supervised.summarise(logprob_N[chosen], tokens_N[chosen])
        result[key][name] = found.to_dict()
  return result
