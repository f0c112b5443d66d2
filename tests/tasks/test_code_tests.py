"""What programs are tested with, run here on programs of our own."""

import json

import publisher_files as published
import pytest

from vespo_jax.tasks import code_tests


def passes(program, tests):
  """Whether a program passes tests of the kind "assert"."""
  assert tests["kind"] == "assert"
  try:
    exec(f"{program}\n{tests['test']}", {})
  except AssertionError:
    return False
  return True


def calls(name, inputs, outputs):
  return code_tests.from_eurus(json.dumps({"fn_name": name, "inputs": inputs, "outputs": outputs}))


FLIPS = (
  "def minFlips(s):\n  a = sum(c != '01'[i % 2] for i, c in enumerate(s))\n  return min(a, {})"
)


def test_a_called_function_is_tested_as_apps_tests_it():
  """Its scorer takes a tuple for a list, and an output or its only element (arXiv 2105.09938)."""
  right, wrong = FLIPS.format("len(s) - a"), FLIPS.format("len(s)")
  tests = code_tests.from_eurus(published.FLIPS)
  assert passes(right, tests) and not passes(wrong + " + 1", tests)
  method = "class Solution:\n  def pair(self, a, b):\n    return a, b"
  assert passes(method, calls("pair", [[1, "x"]], [[1, "x"]]))
  assert passes(method, calls("pair", [[1, "x"]], [[[1, "x"]]]))
  assert not passes(method, calls("pair", [[1, "x"]], [["x", 1]]))
  assert not passes("def none(): pass", calls("none", [[]], [[]]))


def test_arguments_may_be_lines_of_json():
  tests = calls("join", ['"a"\n[1, null]'], ['["a", [1, null]]'])
  assert passes("def join(a, b): return [a, b]", tests)


def test_a_stream_may_be_a_list_of_lines():
  tests = code_tests.from_eurus(json.dumps({"inputs": [["1", "2"]], "outputs": ["3\n"]}))
  assert tests == {"kind": "stdin", "cases": [{"input": "1\n2", "output": "3\n"}]}


@pytest.mark.parametrize(
  "ground_truth,words",
  [
    ("{", "Expecting"),
    ("null", "not subscriptable"),
    ('{"inputs": []}', "outputs"),
    ('{"inputs": [], "outputs": []}', "there are none"),
    ('{"inputs": ["1"], "outputs": []}', "shorter"),
    ('{"inputs": [1], "outputs": ["1"]}', "not a text"),
    ('{"inputs": [{"a": 1}], "outputs": ["1"]}', "not a text"),
    ('{"inputs": [[1]], "outputs": ["1"]}', "expected str"),
    ('{"inputs": [3], "outputs": [3], "fn_name": "f"}', "not a list"),
    ('{"inputs": [[NaN]], "outputs": [3], "fn_name": "f"}', "NaN is not JSON"),
    ('{"inputs": [[1]], "outputs": [3], "fn_name": "f(); evil"}', "not the name of a function"),
    ('{"inputs": [[1]], "outputs": [3], "fn_name": 3}', "isidentifier"),
    ("[" * 200_000, "recursion"),
  ],
)
def test_tests_that_cannot_be_read_say_why(ground_truth, words):
  with pytest.raises(ValueError, match=f"the tests cannot be read: .*{words}"):
    code_tests.from_eurus(ground_truth)


def test_checks_must_be_texts():
  with pytest.raises(TypeError, match="test is not a text"):
    code_tests.call("f", "def f():", None)
