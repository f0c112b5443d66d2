"""One evaluation from the first question to the last record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vespo_jax.evaluation import records
from vespo_jax.evaluation.asking import Evaluator
from vespo_jax.evaluation.record_writer import RecordWriter
from vespo_jax.evaluation.records import About, Evaluated, Record, Response
from vespo_jax.learner.intake import Problems
from vespo_jax.metrics import Progress
from vespo_jax.runtime import Sampler
from vespo_jax.types import Rollout


def collect(
  evaluator: Evaluator, sampler: Sampler, about: About, path: Path, progress: Progress
) -> Evaluated:
  """Asks every problem under every seed, those apart whose records are there, and writes each
  record as it comes; returns the whole evaluation, which is then at `path`.

  Args:
    evaluator: of the problems, with the settings that `about` names.
    sampler: with weights published as version 0.
    about: what is evaluated.
    path: the file of the records.
    progress: counts problems of all seeds.

  Raises ValueError as `RecordWriter`, and what the sampler's channels and the grader raise; what
  was answered by then is kept.
  """
  with RecordWriter(path, about) as writer:
    rewards = []
    for seed in about.seeds:
      left = [index for index in range(about.problems) if (seed, index) not in writer.done]
      for index, rollouts in evaluator.ask(sampler, 0, left, seed):
        record = make_record(evaluator.problems, seed, index, rollouts)
        writer.write(record)
        rewards += [response.reward for response in record.responses]
        progress.update({"step": len(writer.done), "evaluation/accuracy": np.mean(rewards)})
    writer.finish()
  return records.read(path)


def make_record(problems: Problems, seed: int, index: int, rollouts: Sequence[Rollout]) -> Record:
  """The record of graded rollouts that answer problem `index`."""
  example = problems.examples[index]
  return Record(
    seed=seed,
    problem=index,
    question=example.question,
    answer=example.answer,
    responses=[_response(problems, rollout) for rollout in rollouts],
  )


def _response(problems: Problems, rollout: Rollout) -> Response:
  text = problems.tokenizer.decode(rollout.response_ids)
  return Response(
    response=text,
    answer=problems.task.answer(text),
    reward=float(rollout.reward),
    status=rollout.reward_status,
    finish=rollout.finish,
    tokens=len(rollout.response_ids),
    logprob=float(rollout.plain_logprobs.sum(dtype=np.float64)),
  )
