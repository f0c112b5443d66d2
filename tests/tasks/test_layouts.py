"""Every published dataset: what a row of its publisher's becomes, and the very words of its prompt.

The words are those of VESPO's own preprocessing, of EvalPlus and of MBPP, written out here.
"""

import json

import publisher_files as published
import pytest

from vespo_jax import tasks
from vespo_jax.tasks import layouts
from vespo_jax.tasks.layouts import Rejected
from vespo_jax.tasks.sieve import Sieve

BOXED, THINK = published.BOXED, published.THINK


def problem(name, row):
  return layouts.BY_NAME[name].parser(row)(row)


def prompt(name, row):
  """What a policy is asked."""
  found = problem(name, row)
  example = tasks.Example(0, found.question, found.answer, json.dumps(found.metadata))
  return tasks.make(f"dataset/{name}", verifier="exact").prompt(example)


def test_dapo_is_rewritten_as_vespo_does():
  """Its preprocessing replaces the two texts in the prompt, wherever they are."""
  row = published.dapo("Find $x$ if\n\n$x = 1$.", "34", "9a9b")
  content = row["prompt"][0]["content"]
  replaced = content.replace(
    "Solve the following math problem step by step. The last line of your response should be of "
    "the form Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n",
    "",
  ).replace(
    '\n\nRemember to put your answer on its own line after "Answer:".',
    " Please reason step by step, and put your final answer within \\boxed{}.",
  )
  assert prompt("dapo_math", row) == replaced == f"Find $x$ if\n\n$x = 1$. {BOXED}"
  assert problem("dapo_math", row)[1:] == ("34", {"index": "9a9b"})


def test_a_prompt_that_is_not_dapos_is_rejected():
  row = published.dapo("Find $x$.", "34", "9a9b")
  row["prompt"][0]["content"] += " "
  with pytest.raises(Rejected, match="does not begin and end as DAPO's do"):
    problem("dapo_math", row)


@pytest.mark.parametrize(
  "name,row,question,answer,metadata",
  [
    ("math500", published.MATH500, f"{{}} {THINK}", published.MATH500["answer"], 4),
    ("aime24", published.AIME_H4, f"{{}} {THINK}", "204", 4),
    ("aime24", published.AIME_MAXWELL, f"{{}} {THINK}", "33", 2),
    ("aime25", published.AIME25, f"{{}} {THINK}", "70", 1),
    ("amc23", published.AMC23, f"{{}} {BOXED}", "27", 2),
    ("deepscaler", published.DEEPSCALER, f"{{}} {THINK}", "2", 1),
  ],
)
def test_mathematical_sets(name, row, question, answer, metadata):
  """The suffixes of VESPO: of AMC23 and of DAPO one, of all the others another."""
  text = next(row[key] for key in ("problem", "Problem", "question") if key in row)
  assert prompt(name, row) == question.replace("{}", text, 1)
  found = problem(name, row)
  assert (found.answer, len(found.metadata)) == (answer, metadata)
  assert layouts.BY_NAME[name].verifier == "math_verify"
  assert all(key in {"solution", "subject", "level", "unique_id", "id", "url", "year"}
             for key in found.metadata)  # fmt: skip


def test_gsm8k_has_its_number_after_the_hashes():
  (row,) = published.gsm8k(1, start=500)
  found = problem("gsm8k", row)
  assert found.answer == "2000"  # published as "2,000"
  assert found.metadata == {"solution": "She has 1500+500=<<1500+500=2000>>2000 pens."}
  assert prompt("gsm8k", row) == (
    "Ann has 1500 pens and buys 500. How many are there? "
    'Let\'s think step by step and output the final answer after "####".'
  )
  assert layouts.BY_NAME["gsm8k"].verifier == "numeric"
  with pytest.raises(Rejected, match="no ####"):
    problem("gsm8k", {**row, "answer": "2000"})


def test_eurus_has_the_users_turn_and_its_tests():
  row = published.eurus("Echo a number.", published.ECHO)
  assert prompt("eurus_code", row) == "Echo a number." + published.EURUS_END
  cases = [{"input": "3\n", "output": "3\n"}, {"input": "4\n", "output": "4\n"}]
  assert problem("eurus_code", row).metadata == {
    "kind": "stdin",
    "cases": cases,
    "source": "codeforces",
  }
  with pytest.raises(Rejected, match="not a problem of code"):
    problem("eurus_code", published.eurus("Prove it.", "1", ability="math"))


@pytest.mark.parametrize("name", ["humaneval", "humaneval_plus"])
def test_humaneval_is_asked_as_evalplus_asks(name):
  row = published.HUMANEVAL
  assert prompt(name, row) == (
    "Please provide a self-contained Python script that solves the following problem in a markdown "
    'code block:\n```\ndef add(x: int, y: int):\n  """Add two numbers x and y\n  """\n```\n'
  )
  assert problem(name, row).metadata == {
    "kind": "call",
    "entry_point": "add",
    "prompt": row["prompt"],
    "test": row["test"],
    "task_id": "HumanEval/53",
  }
  program = {}
  exec(problem(name, row).answer + row["test"], program)  # the answer is a whole program
  program["check"](program["add"])


def test_mbpp_shows_its_first_assertions():
  row = published.MBPP
  assert prompt("mbpp_plus", row) == (
    "You are an expert Python programmer, and here is your task: Write a function to find the "
    "shared elements from the given two lists. Your code should pass these tests:\n\n"
    "assert shared([1], [1, 2]) == {1}\nassert shared([1], [2]) == set()"
  )
  found = problem("mbpp_plus", row)
  assert found.metadata == {"kind": "assert", "task_id": 2, "test": row["test"]}
  exec(f"{found.answer}\n{row['test']}", {})


def test_champ_leaves_out_what_other_models_said():
  found = problem("champ", published.CHAMP)
  assert found == (
    "Find x.",
    "1",
    {"identifier": "P_Inequality_1", "category": "Inequality", "solution": "It is 1."},
  )


def test_answers_in_latex_are_not_passed_bare():
  """math-verify reads the bare answer 10\\sqrt{2} as 10."""
  forms = {layout.name: layout.verifier_options.get("answer_form") for layout in layouts.LAYOUTS}
  assert {name for name, form in forms.items() if form == "boxed"} == {
    *("math500", "deepscaler", "champ")
  }


def test_the_options_of_a_layout_go_to_its_own_verifier_alone(monkeypatch):
  made = []

  def record(name, **options):
    made.append((name, options))

  monkeypatch.setattr(tasks._stored.verifiers, "make", record)
  tasks.make("dataset/math500")
  tasks.make("dataset/math500", answer_form="bare")
  tasks.make("dataset/math500", verifier="numeric", tolerance=0.1)
  assert made == [
    ("math_verify", {"answer_form": "boxed"}),
    ("math_verify", {"answer_form": "bare"}),
    ("numeric", {"tolerance": 0.1}),
  ]


def test_every_layout_is_tested_and_scored_by_something_known():
  tested = "gsm8k dapo_math deepscaler math500 aime24 aime25 amc23 eurus_code humaneval \
    humaneval_plus mbpp_plus champ".split()
  assert [layout.name for layout in layouts.LAYOUTS] == tested
  for layout in (*layouts.LAYOUTS, layouts.JSONL):
    assert layout.verifier in {"exact", "numeric", "math_verify", "code"}
    assert layout.template.count("{question}") == 1


def test_other_columns_are_named():
  with pytest.raises(ValueError, match="aime24 has the columns problem, answer or Problem, Answer;"
                                       " here are answer, question"):  # fmt: skip
    layouts.BY_NAME["aime24"].parser({"question": "", "answer": ""})


@pytest.mark.parametrize(
  "value,text",
  [("7", "7"), (7, "7"), (27.0, "27"), (0.5, "0.5"), (None, ""), ([3], "3"), ([1, "x"], "1, x")],
)
def test_answers_are_texts(value, text):
  assert layouts.text(value) == text


@pytest.mark.parametrize("value", [True, float("nan"), {"a": 1}, b"7"])
def test_what_is_no_answer_is_refused(value):
  with pytest.raises(TypeError, match="is not an answer"):
    layouts.text(value)


def sift(name, rows, path, split="train"):
  """The problems of rows, and the sieve they went through."""
  sieve = Sieve(layouts.BY_NAME[name])
  file = published.write(path / "rows.jsonl", rows)
  return list(sieve.problems(split, [file], lambda rows: None)), sieve


def test_dapos_hundred_copies_are_one_problem(tmp_path):
  copies = [published.dapo(f"Find $x$ number {i % 3}.", "1", f"index {i % 3}") for i in range(300)]
  other = published.dapo("Find  $x$ number\n2.", "2", "index 2")  # another answer to the third
  problems, sieve = sift("dapo_math", [*copies, other], tmp_path)
  assert [question for question, *_ in problems] == [f"Find $x$ number {i}." for i in range(3)]
  assert (sieve.read["train"], sieve.kept["train"]) == (301, 3)
  counts = {why: (each.count, each.first[-7:]) for why, each in sieve.rejected.items()}
  assert counts == {
    "duplicate question": (297, " line 4"),
    "duplicate question, another answer": (1, "ine 301"),
  }


def test_every_row_is_kept_or_counted_under_its_reason(tmp_path):
  good = published.gsm8k(3)
  bad = [
    ({**good[0], "question": "  "}, "empty question"),
    ({**good[0], "answer": "Nothing.\n#### "}, "empty answer"),
    ({**good[0], "answer": "2000"}, "unparseable row"),
    ({**good[0], "answer": 3}, "unparseable row"),
    ({**good[0], "question": ["a"]}, "unparseable row"),
    ({"question": "And?"}, "unparseable row"),
    ({**good[0], "question": "half \ud800"}, "unparseable row"),
    ({**good[0], "question": "x" * (4 << 20)}, "too long"),
    (good[1], "duplicate question"),
  ]
  problems, sieve = sift("gsm8k", [*good, *(row for row, _ in bad)], tmp_path)
  assert len(problems) == 3
  expected = [reason for _, reason in bad]
  counts = {why: each.count for why, each in sieve.rejected.items()}
  assert counts == {why: expected.count(why) for why in expected}
  assert sieve.rejected["too long"].first.endswith("line 11: 4.0 MiB, of at most 4")
  assert sieve.read["train"] == 12


def test_files_without_a_problem_say_why(tmp_path):
  with pytest.raises(ValueError, match="train has no problem: 2 unparseable row .first .*line 1"):
    sift("gsm8k", [{"question": "a", "answer": "b"}] * 2, tmp_path)
  with pytest.raises(ValueError, match="train has no problem: its files have no rows"):
    sift("gsm8k", [], tmp_path)


def test_a_file_of_other_columns_is_refused_by_its_first_row(tmp_path):
  rows = [{"pens": 3}, *published.gsm8k(2)]
  with pytest.raises(
    ValueError, match="rows.jsonl, line 1: gsm8k has the columns question, answer"
  ):
    sift("gsm8k", rows, tmp_path)


def test_a_question_of_the_test_split_is_none_to_train_on(tmp_path):
  _, sieve = sift("gsm8k", published.gsm8k(2), tmp_path, split="test")
  file = published.write(tmp_path / "train.jsonl", published.gsm8k(3, start=1))
  problems = list(sieve.problems("train", [file], lambda rows: None))
  assert [question[:13] for question, *_ in problems] == ["Ann has 1002 ", "Ann has 1003 "]
  assert {why: each.count for why, each in sieve.rejected.items()} == {
    "question of the test split": 1
  }
