"""One evaluation from the first question to the last record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vespo_jax.evaluation import records
from vespo_jax.evaluation.asking import Evaluator
from vespo_jax.evaluation.record_writer import RecordWriter
from vespo_jax.evaluation.records import About, Evaluated, Record, Response
from vespo_jax.learner.intake import ProblemSet
from vespo_jax.metrics import Progress
from vespo_jax.runtime import Sampler
from vespo_jax.tasks import Votable
from vespo_jax.tokenizers import Tokenizer
from vespo_jax.types import Rollout, TokenIds


def collect(
  evaluator: Evaluator,
  sampler: Sampler,
  about: About,
  path: Path,
  progress: Progress,
  votable: Mapping[str, Votable],
) -> Evaluated:
  """Asks every problem under every seed, those apart whose records are there, and writes each
  record as it comes; returns the whole evaluation, which is then at `path`.

  Args:
    evaluator: of the problems, with the settings that `about` names.
    sampler: with weights published as version 0.
    about: what is evaluated.
    path: the file of the records.
    progress: counts problems of all seeds.
    votable: by name, the tasks whose answers are cut out for a vote.

  Raises ValueError as `RecordWriter`, and what the sampler's channels and the grader raise; what
  was answered by then is kept.
  """
  with RecordWriter(path, about) as writer:
    for seed in about.seeds:
      left = [index for index in range(about.problems) if (seed, index) not in writer.done]
      for index, rollouts in evaluator.ask(sampler, 0, left, seed):
        record = make_record(evaluator.problems, votable, seed, index, rollouts)
        writer.write(record)
        accuracy = np.mean(writer.rewards)
        progress.update({"step": len(writer.done), "evaluation/accuracy": accuracy})
    writer.finish()
  return records.read(path)


def make_record(
  problems: ProblemSet,
  votable: Mapping[str, Votable],
  seed: int,
  index: int,
  rollouts: Sequence[Rollout],
) -> Record:
  """The record of graded rollouts that answer problem `index`."""
  example = problems.examples[index]
  return Record(
    seed=seed,
    problem=index,
    question=example.question,
    answer=example.answer,
    responses=[
      _response(problems.tokenizer, votable.get(rollout.task), rollout) for rollout in rollouts
    ],
  )


def _response(tokenizer: Tokenizer, votable: Votable | None, rollout: Rollout) -> Response:
  text = tokenizer.decode(rollout.response_ids)
  return Response(
    response=text,
    answer=None if votable is None else votable.answer(text),
    reward=float(rollout.reward),
    status=rollout.reward_status,
    finish=rollout.finish,
    tokens=len(rollout.response_ids),
    logprob=float(rollout.plain_logprobs.sum(dtype=np.float64)),
  )


def digest(problems: ProblemSet, count: int) -> str:
  """SHA-256 of the first `count` problems, what graders need of them included."""
  found = hashlib.sha256()
  for index in range(count):
    example = problems.examples[index]
    found.update(json.dumps([example.question, example.answer, example.metadata]).encode())
  return found.hexdigest()


def digest_of_asked(prompts: Sequence[TokenIds], stop_ids: Sequence[int]) -> str:
  """SHA-256 of the prompts as the model is given them, and of what ends its responses."""
  plain = [[int(id) for id in ids] for ids in (*prompts, stop_ids)]
  return hashlib.sha256(json.dumps(plain).encode()).hexdigest()
