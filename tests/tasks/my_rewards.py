"""Rewards of somebody's own, for tests."""

import json

from vespo_jax.tasks import Score

NOT_A_FUNCTION = 3


def length(response, answer, metadata):
  return min(len(response) / len(answer), 1.0)


def odd(response, answer, metadata):
  return float(sum(map(ord, response)) % 2)  # half of what any policy says


def says_more(response, answer, metadata):
  return Score(float(response == answer), "ok" if response == answer else "unparsed")


def too_much(response, answer, metadata):
  return 2


def raises(response, answer, metadata):
  raise KeyError(response)


def raises_elsewhere(response, answer, metadata):
  print("it is asked")
  return json.loads(metadata + "]")


def writes(response, answer, metadata):
  open(response, "w")


def of_two(response, answer):
  return 1.0
