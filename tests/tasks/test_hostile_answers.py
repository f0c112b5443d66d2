"""No text costs more than its own verdict: what is graded beside it keeps its right score."""

import json

import psutil
import pytest
import verified_family  # noqa: F401  (registers the family)

from vespo_jax import tasks
from vespo_jax.tasks import Example

MB = 1_000_000
CHEAP = {
  "a tower": r"\boxed{9**9**9}",
  "zero width": "\u200b7\u200d\u2060",
  "right to left": "\u202e7\u202c",
  "NUL": "\0" * 1000 + "7\0",
  "surrogates": "\ud800\udfff\udc00 7",
  "letters": "a" * 100_000 + "!",
  "spaces": " " * 100_000 + "x",
  "commas": "1," * 20_000,
  "dollars": "$" * 100_000,
  "equals": "=" * 100_000,
  "percents": "%" * 100_000,
  "backslashes": "\\" * 100_000,
  "an exponent": "1e999999999",
  "code": "__import__('os').system('touch {here}')",
  "code in LaTeX": r"$\text{__import__('os').system('touch {here}')}$",
  "code in a box": r"\boxed{__import__('os').system('touch {here}')}",
}
LONG = {"10 MB of brackets": "[" * 10 * MB, "10 MB of digits": "9" * 10 * MB}
SYMBOLIC = {
  "a tower in LaTeX": "$9^{9^{9^{9}}}$",
  "10 MB of open boxes": "\\boxed{" * (10 * MB // 7),
  "fractions": "$" + r"\frac{1}{" * 10_000 + "1" + "}" * 10_000 + "$",
  "powers": "$" + "2^{" * 2_000 + "2" + "}" * 2_000 + "$",
  "roots": "$" + r"\sqrt{" * 3_000 + "2" + "}" * 3_000 + "$",
  "factorials": "$10" + "!" * 50 + "$",
  "a factorial": "$(10^{8})!$",
  "a binomial": r"$\binom{10^{9}}{5\cdot 10^8}$",
  "a matrix": r"$\begin{pmatrix}"
  + r"\\".join("&".join(["x+1"] * 100) for _ in range(100))
  + r"\end{pmatrix}^{50}$",
  "a sum": r"$\sum_{n=1}^{10^{9}} \frac{1}{n}$",
  "an integral": r"$\int_0^1 e^{e^{e^x}} \sin(\tan x) dx$",
  "many boxes": "\\boxed{1}\n" * 100_000,
}
STDIN = json.dumps({"kind": "stdin", "cases": [{"input": "7", "output": "7"}]})
PROGRAMS = {
  "fork bomb": "import os\nwhile True: os.fork()",
  "busy": "while True: pass",
  "10 GB": "x = bytearray(10 << 30)",
  "printing": "while True: print('x' * 10000)",
  "home": "import pathlib\npathlib.Path('{here}').write_text('x')",
  "socket": "import socket\nsocket.create_connection(('127.0.0.1', 9))",
  "deaf": "import signal, time\nsignal.signal(15, signal.SIG_IGN)\ntime.sleep(99)",
  "10 MB of comment": "#" * 10 * MB,
  "10 MB of brackets": "[" * 10 * MB,
  "daemon": "import os, time\nif os.fork() == 0:\n  os.setsid()\n  time.sleep(99)",
}


def grade(name, texts, good, tmp_path, limit_s, metadata="{}", **options):
  """The statuses of hostile texts, between good answers that must be seen to be."""
  here = tmp_path / "touched"
  texts = [text.replace("{here}", str(here)) for text in texts]
  example = Example(0, "question", "7", metadata)
  answers = [good, *(answer for text in texts for answer in (text, good))]
  task = tasks.make(f"verified/{name}", **options)
  with tasks.Grader(task, timeout_s=limit_s) as grader:
    scores = grader.grade([example] * len(answers), answers)
  assert {score.status for score in scores[::2]} == {"ok"}
  assert not here.exists()
  return [score.status for score in scores[1::2]]


RIGHT = {  # hostile to look at, and right: NFKC and what cannot be seen do not count
  "exact": {"zero width", "right to left"},
  "numeric": {"zero width", "right to left", "NUL", "surrogates"},
  "math_verify": {"surrogates"},
}


@pytest.mark.parametrize(
  "texts", [CHEAP, pytest.param(LONG | SYMBOLIC, marks=pytest.mark.slow)], ids=["short", "long"]
)
@pytest.mark.parametrize("name", ["exact", "numeric"])
def test_no_text_troubles_plain_verifiers(name, texts, tmp_path):
  got = dict(zip(texts, grade(name, texts.values(), "7", tmp_path, 30.0), strict=True))
  assert {text for text, status in got.items() if status == "ok"} == RIGHT[name] & texts.keys()
  assert set(got.values()) <= {"ok", "wrong", "unparsed"}


def test_no_text_troubles_math_verify(tmp_path):
  texts = CHEAP | {"a tower in LaTeX": SYMBOLIC["a tower in LaTeX"]}
  got = dict(zip(texts, grade("math_verify", texts.values(), "7", tmp_path, 2.0), strict=True))
  assert {text for text, status in got.items() if status == "ok"} == RIGHT["math_verify"]
  assert got["a tower in LaTeX"] == "timeout"
  assert {s for text, s in got.items() if text in CHEAP} <= {"ok", "wrong", "unparsed"}


@pytest.mark.slow
def test_symbolic_bombs_cost_their_own_answer(tmp_path):
  texts = LONG | SYMBOLIC
  got = dict(zip(texts, grade("math_verify", texts.values(), "7", tmp_path, 3.0), strict=True))
  assert set(got.values()) <= {"timeout", "error", "wrong", "unparsed"}
  assert "timeout" in got.values()


def test_no_program_troubles_the_grader(tmp_path):
  texts = [f"```python\n{program}\n```" for program in PROGRAMS.values()]
  got = grade("code", texts, "print(input())", tmp_path, 10.0, STDIN, timeout_s=2.0)
  got = dict(zip(PROGRAMS, got, strict=True))
  assert {name for name, status in got.items() if status == "timeout"} >= {"busy", "deaf"}
  assert set(got.values()) <= {"timeout", "wrong"}


def test_a_program_that_outlasts_the_grader_ends_with_it(tmp_path, capfd):
  """Then it is the grader's own limit that stops it. Its successor does not repeat the level."""
  got = grade("code", ["while True: pass"], "print(input())", tmp_path, 2.0, STDIN, timeout_s=60.0)
  assert got == ["timeout"]
  assert capfd.readouterr().err.count("in the sandbox's level") == 1
  left = [
    p for p in psutil.process_iter(["cmdline"]) if "/program/main.py" in (p.info["cmdline"] or [])
  ]
  _, left = psutil.wait_procs(left, timeout=20.0)  # those of tests beside this one end by then
  assert not left


CASES = [  # response, reference answer, and what math-verify must say of them passed bare, boxed
  (r"The answer is $\frac{1}{2}$", "0.5", "ok", "ok"),
  (r"It is 3, no, \boxed{4}", "4", "ok", "ok"),
  (r"\boxed{3}", "4", "wrong", "wrong"),
  ("I do not know", "4", "unparsed", "unparsed"),
  (r"\boxed{\sqrt{12}}", r"2\sqrt{3}", "wrong", "ok"),  # bare, it reads the 2 alone
  (r"\boxed{x^2+1}", "$1+x^2$", "ok", "ok"),
  (r"\boxed{(1,2)}", "$1<x<2$", "ok", "ok"),  # but not the other way round
  ("3", r"\left(3, \frac{\pi}{2}\right)", "error", "wrong"),  # bare, it reads nothing
]


@pytest.mark.parametrize("form", ["bare", pytest.param("boxed", marks=pytest.mark.slow)])
def test_math_verify(form):
  examples = [Example(i, "question", case[1], "{}") for i, case in enumerate(CASES)]
  with tasks.Grader(tasks.make("verified/math_verify", answer_form=form)) as grader:
    scores = grader.grade(examples, [case[0] for case in CASES])
  assert [score.status for score in scores] == [case[3 if form == "boxed" else 2] for case in CASES]


@pytest.mark.slow
def test_math_verify_rewards_what_the_package_alone_does():
  """In the words of VESPO's reward function: any exception is 0."""
  import math_verify

  answers = ["0.5", "4", r"2\sqrt{3}", "-1", "10%", r"\frac{3}{4}", "1,234", "(1, 2)", "x=5"]
  responses = [f"I say \\boxed{{{a}}}." for a in answers] + [f"It is ${a}$" for a in answers]
  pairs = [(response, answer) for response in responses for answer in answers]
  expected = []
  for response, answer in pairs:
    gold, found = (math_verify.parse(text, parsing_timeout=30) for text in (answer, response))
    expected.append(float(math_verify.verify(gold, found, timeout_seconds=30)))
  examples = [Example(i, "question", answer, "{}") for i, (_, answer) in enumerate(pairs)]
  with tasks.Grader(tasks.make("verified/math_verify")) as grader:
    scores = grader.grade(examples, [response for response, _ in pairs])
  assert [score.reward for score in scores] == expected
  assert 0 < sum(expected) < len(expected)
