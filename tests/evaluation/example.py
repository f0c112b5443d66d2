"""Evaluations made up for tests."""

import numpy as np

from vespo_jax.evaluation.records import About, Evaluated, Record, Response


def about(**changes):
  fields = dict(
    model="a model",
    step=3,
    weights="ab" * 32,
    task="family/dataset",
    options={"answer_format": "text"},
    problems=4,
    problem_set="cd" * 32,
    samples=2,
    seeds=[0],
    temperature=1.0,
    top_p=1.0,
    max_new_tokens=8,
    stop_strings=[],
    dtype="float32",
    reward="",
  )
  return About(**(fields | changes))


def response(reward, answer="7"):
  status = "ok" if reward else "wrong"
  return Response(f" {answer}", answer, float(reward), status, "stop", 2, -1.5)


def record(seed, problem, rewards):
  responses = [response(reward) for reward in rewards]
  return Record(seed, problem, f"question {problem}", f"answer {problem}", responses)


def evaluated(rewards_SPR, **changes):
  rewards_SPR = np.asarray(rewards_SPR)
  seeds, problems, samples = rewards_SPR.shape
  sizes = dict(seeds=list(range(seeds)), problems=problems, samples=samples)
  return Evaluated(
    about(**(sizes | changes)),
    [[record(s, p, rewards) for p, rewards in enumerate(of)] for s, of in enumerate(rewards_SPR)],
  )
