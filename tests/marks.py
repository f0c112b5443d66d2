"""Which cases of a parametrised test the default suite runs, and which only the slow one."""

import pytest


def slow_but(cases, *kept):
  """What `parametrize` is given, of which `kept` are of the default suite.

  Raises:
    ValueError: one of `kept` is no case.
  """
  cases = list(cases)
  if missing := [case for case in kept if case not in cases]:
    raise ValueError(f"no such case: {missing}")
  as_values = lambda case: case if isinstance(case, tuple) else (case,)
  return [
    pytest.param(*as_values(case), marks=[pytest.mark.slow] * (case not in kept)) for case in cases
  ]
