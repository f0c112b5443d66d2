"""No answer is run as code: what scorers would evaluate is read as a formula or a literal."""

import re
from pathlib import Path

import pytest

from vespo_jax import tasks
from vespo_jax.tasks import Example, formulas

EVALUATING = [  # datasets whose scorers give the answer to SymPy, then to `eval`
  *("countdown", "simple_integration", "intermediate_integration", "polynomial_multiplication"),
  *("binary_matrix", "n_queens", "spiral_matrix", "string_insertion"),
]
# Where the package evaluates anything, and how often. What is not in `formulas` evaluates its own
# problems alone; codeio, whose data is code, is refused.
KNOWN = {
  "algebra/intermediate_integration.py": ["parse_expr"] * 2,
  "algebra/polynomial_multiplication.py": ["parse_expr"] * 2,
  "algebra/simple_integration.py": ["parse_expr"] * 2,
  "algorithmic/binary_matrix.py": ["eval"],
  "algorithmic/number_sorting.py": ["eval"],
  "algorithmic/spiral_matrix.py": ["eval"],
  "algorithmic/string_insertion.py": ["eval"],
  "arithmetic/basic_arithmetic.py": ["eval"],
  "arithmetic/bitwise_arithmetic.py": ["eval"] * 2,
  "arithmetic/gsm_symbolic/generators_00_49.py": ["eval"],
  "arithmetic/gsm_symbolic/generators_50_99.py": ["eval"],
  "code/codeio.py": ["exec"],
  "games/countdown.py": ["parse_expr"],
  "games/n_queens.py": ["eval"],
  "games/puzzle24.py": ["parse_expr"],
}
OWN_PARSER = "logic/propositional_logic.py"  # its `parse_expr` is a parser of its own

HOSTILE = [
  "__import__('os').system('touch {path}')",
  "open('{path}', 'w')",
  "setattr(__import__('sys').modules['vespo_jax.tasks.guard'], 'refuse', 1)",
  "[x for x in ().__class__.__base__.__subclasses__()]",
  "exec(bytes((112, 97, 115, 115)))",
  "sympify(chr(49))",
  "(lambda: 1)()",
  "eval(input())",
  "(1).real",
  "S(1)",
  "Symbol(x)",
  "f'{open}'",
  "9 if 1 else 2",
  "1 . real",
  "x.\n real",
  "test()",
]


@pytest.mark.parametrize(
  "text",
  ["(25 + 3)*4 - 100/5", "5!", "1.5e3", "-x**3/3 + C", "sin(x)*exp(-2*x) + log(x)", "sqrt(2)*pi"],
)
def test_formulas_are_formulas(text):
  assert formulas.is_formula(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_else_is(text):
  assert not formulas.is_formula(text)


def test_a_long_text_is_judged_in_linear_time():
  assert not formulas.is_formula("1" * 200_000 + "_") and formulas.is_formula("(1+" * 50_000)


@pytest.mark.parametrize("dataset", EVALUATING)
def test_right_answers_stay_right_and_code_is_not_run(dataset, tmp_path):
  """In this process, where nothing else would stop it."""
  task = tasks.make(f"reasoning_gym/{dataset}", answer_format="text")
  examples = [Example(i, *problem) for i, problem in enumerate(task.generate(0, 12))]
  examples = [example for example in examples if example.answer][:8]  # some have none
  assert [task.score(example, example.answer).reward for example in examples] == [1.0] * 8
  for text in HOSTILE:
    assert task.score(examples[0], text.replace("{path}", str(tmp_path / "x"))).reward == 0.0
  assert not list(tmp_path.iterdir())


def test_literals_still_earn_what_the_package_pays_for_them():
  """A tenth, which is no reward here."""
  task = tasks.make("reasoning_gym/string_insertion", answer_format="text")
  example = Example(0, *next(task.generate(0, 1)))
  assert task.score(example, str(list(example.answer))).raw == 0.1


def test_the_package_evaluates_nothing_that_is_not_known():
  import reasoning_gym

  root = Path(reasoning_gym.__file__).parent
  found = {}
  for path in root.rglob("*.py"):
    calls = re.findall(r"(?<!literal_)\b(eval|exec|parse_expr|sympify)\(", path.read_text())
    if calls and str(path.relative_to(root)) != OWN_PARSER:
      found[str(path.relative_to(root))] = calls
  assert found == KNOWN
