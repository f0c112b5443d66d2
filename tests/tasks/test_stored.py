"""Tasks of a dataset and of a user's own file: options, prompts, scores, and what is refused."""

import json

import publisher_files as published
import pytest

from vespo_jax import tasks
from vespo_jax.tasks import prepare

OWN = [{"prompt": f"Say {i}.", "answer": i, "metadata": {"number": i}} for i in range(20)]


def make_own(path, **options):
  return tasks.make(f"jsonl:{path}", **options)


def open_splits(task, data_dir, seed=0, train_size=0, test_size=0):
  sizes = dict(train_size=train_size, test_size=test_size)
  return tasks.open_splits(task, data_dir=data_dir, seed=seed, **sizes)


def test_a_users_own_file_is_prepared_on_first_use_alone(tmp_path, capsys, monkeypatch):
  path = published.write(
    tmp_path / f"my {'n' * 200}umbers.jsonl", [*OWN, OWN[3], {"prompt": "", "answer": 1}]
  )
  task = make_own(path, held_out=0.25)
  splits = open_splits(task, tmp_path / "data")
  assert [len(splits.train), len(splits.test)] == [15, 5]
  examples = {example.question: example for example in [*splits.train, *splits.test]}
  assert set(examples) == {row["prompt"] for row in OWN}
  assert examples["Say 7."].answer == "7"
  assert json.loads(examples["Say 7."].metadata) == {"number": 7}
  said = capsys.readouterr().err
  assert "read 22 rows of 1 file" in said and "1 empty question" in said
  assert "1 duplicate question (first" in said and "umbers.jsonl, line 21" in said
  monkeypatch.setattr(prepare, "build_in_child", lambda *order: pytest.fail("built again"))
  again = open_splits(task, tmp_path / "data")
  assert list(again.test) == list(splits.test) and not capsys.readouterr().err
  with tasks.Grader(task) as grader:  # it makes the task from its name and options
    scores = grader.grade([examples["Say 7."]] * 2, ["7", "8"])
  assert [score.status for score in scores] == ["ok", "wrong"]


def test_a_file_that_has_changed_is_not_the_one_of_a_digest(tmp_path):
  path = published.write(tmp_path / "mine.jsonl", OWN)
  digest = make_own(path).check(tmp_path / "data")
  kept = make_own(path, digest=digest)
  assert kept.check(tmp_path / "data") == digest
  published.write(path, OWN[:-1])
  with pytest.raises(ValueError, match=f"it has changed: its digest is [0-9a-f]+, not '{digest}'"):
    kept.check(tmp_path / "data")
  published.write(path, OWN)
  assert len(open_splits(kept, tmp_path / "data").train) == 18
  path.unlink()  # it is prepared
  assert len(open_splits(kept, tmp_path / "data").train) == 18


def test_a_second_file_is_held_out_and_its_questions_are_not_trained_on(tmp_path):
  train = published.write(tmp_path / "train.jsonl", OWN)
  test = published.write(tmp_path / "test.jsonl.gz", OWN[:4])
  splits = open_splits(make_own(train, test_path=str(test)), tmp_path / "data")
  assert [len(splits.train), len(splits.test)] == [16, 4]
  assert {example.question for example in splits.test} == {row["prompt"] for row in OWN[:4]}


def test_messages_with_one_turn_of_the_user_are_a_prompt():
  layouts = tasks._stored.layouts
  parse = layouts.JSONL.parser({"prompt": "", "answer": ""})
  turn, system = ({"role": role, "content": "Say 1."} for role in ("user", "system"))
  assert parse({"prompt": [turn], "answer": "1"}).question == "Say 1."
  with pytest.raises(TypeError, match="not one turn of the user"):
    parse({"prompt": [turn, {"role": "assistant", "content": "2"}], "answer": "1"})
  with pytest.raises(layouts.Rejected, match="system message"):  # it would not be asked
    parse({"prompt": [system, turn], "answer": "1"})


def test_other_columns_of_a_users_own_file_are_metadata():
  parse = tasks._stored.layouts.JSONL.parser({"prompt": "", "answer": ""})
  row = {"level": 3, "prompt": "Say 1.", "answer": 1, "metadata": {"tests": []}, "tests": [1]}
  assert parse(row).metadata == {"level": 3, "tests": []} and row["answer"] == 1
  with pytest.raises(TypeError, match="metadata is not an object"):
    parse(row | {"metadata": 3})


@pytest.mark.parametrize(
  "name,options,words",
  [
    ("dataset/gsm9k", {}, "no dataset 'gsm9k' is known; known: gsm8k, .*A file of your own is jso"),
    ("dataset/gsm8k", {"verifier": "exactly"}, "unknown verifier 'exactly' .did you mean 'exact'"),
    ("dataset/gsm8k", {"heldout": 0.2}, "no option 'heldout'; .*of the task itself: .*held_out"),
    ("dataset/gsm8k", {"held_out": 1.0}, "held_out=1.0 must be between 0 and 1"),
    ("dataset/gsm8k", {"held_out": "0.1"}, "held_out='0.1' must be a number"),
    ("dataset/gsm8k", {"train_split": 3}, "train_split=3 must be a text"),
    ("dataset/gsm8k", {"template": "Answer!"}, "template='Answer!' must have {question} in it"),
    ("dataset/gsm8k", {"test_path": "a.jsonl"}, "no option 'test_path'"),
    ("jsonl/a.jsonl", {}, "unknown task family 'jsonl' .did you mean 'jsonl:'.*known: .*jsonl:, "),
  ],
)
def test_what_a_task_does_not_know_is_named(name, options, words):
  with pytest.raises(ValueError, match=words):
    tasks.make(name, **options)


def test_names_and_options_make_the_same_task_again():
  for name in ("dataset/gsm8k", "jsonl:/a/b.jsonl", "jsonl:a/b.jsonl", "jsonl:b:c.jsonl"):
    assert tasks.make(name).name == name


def test_the_template_and_the_verifier_are_the_tasks():
  task = tasks.make(
    "dataset/gsm8k", template="Q: {question}\nA: {", verifier="exact", answer_format="boxed"
  )
  example = tasks.Example(0, "{question}? {x}", "3", "{}")
  assert task.prompt(example) == "Q: {question}? {x}\nA: {"
  assert task.score(example, "so \\boxed{3}").status == "ok"


@pytest.mark.parametrize(
  "verifier,response,answer",
  [
    ({"verifier": "numeric"}, "3 pens and 4 pens are 1,007", "1007"),
    ({"verifier": "numeric"}, "#### 18.00 in 3 steps", "18"),
    ({"verifier": "numeric"}, "\\boxed{50\\%}. It took 3 steps.", "50%"),
    ({"verifier": "numeric", "answer_format": "tag"}, "<answer>-.5</answer> in 3 steps", "-1/2"),
    ({"verifier": "numeric", "answer_format": "hash"}, "7", None),
    ({"verifier": "exact", "answer_format": "tag"}, "so <answer>a</answer>", "a"),
    ({"verifier": "exact"}, " a ", "a"),
    ({"verifier": "exact", "answer_format": "boxed"}, "a", None),
  ],
)
def test_what_a_response_answers_is_what_is_verified(verifier, response, answer):
  assert tasks.make("dataset/gsm8k", **verifier).answer(response) == answer


def test_programs_are_fenced_and_not_voted_on():
  made = {layout.name: tasks.make(f"dataset/{layout.name}") for layout in prepare.layouts.LAYOUTS}
  code = {name for name, task in made.items() if not isinstance(task, tasks.Votable)}
  assert code == {"eurus_code", "humaneval", "humaneval_plus", "mbpp_plus"}
  program = tasks.Example(0, "?", "print(2)", "{}")
  assert made["humaneval"].solution(program) == "```python\nprint(2)\n```"
  assert made["eurus_code"].solution(tasks.Example(0, "?", "", "{}")) == ""


def test_a_file_that_is_not_there_or_not_jsonl_is_named(tmp_path):
  endless = f"{'a' * 5000}.jsonl"
  absent = "does not exist"
  for path, words in (("none.jsonl", absent), (endless, absent), ("a.parquet", "must end in .js")):
    with pytest.raises(ValueError, match=f"{path}' {words}"):
      make_own(tmp_path / path).check(tmp_path)
  with pytest.raises(ValueError, match="none.jsonl' does not exist"):
    open_splits(make_own(tmp_path / "none.jsonl"), tmp_path / "data")


def test_a_set_without_problems_to_train_on_is_evaluated_whole(tmp_path):
  rows = [{**published.AIME25, "problem": f"Find {i}."} for i in range(30)]
  file = published.write(tmp_path / "test.jsonl", rows)
  prepare.prepare("aime25", [str(file)], data_dir=tmp_path)
  task = tasks.make("dataset/aime25", verifier="exact")
  splits = open_splits(task, tmp_path)
  assert [len(splits.train), len(splits.test)] == [0, 30]
  with pytest.raises(ValueError, match="nothing to train on.*task.options.train_split=test"):
    task.check(tmp_path)
  divided = tasks.make("dataset/aime25", verifier="exact", train_split="test", held_out=0.4)
  divided.check(tmp_path)
  assert [len(part) for part in vars(open_splits(divided, tmp_path)).values()] == [18, 12]
  with pytest.raises(ValueError, match="train_split='train' is not among its splits: test"):
    tasks.make("dataset/aime25", verifier="exact", train_split="train").check(tmp_path)


def test_a_damaged_dataset_is_no_dataset(tmp_path):
  directory = tmp_path / f"gsm8k-{'0' * 16}"
  directory.mkdir()
  (directory / prepare.REPORT).write_text("{}")
  with pytest.raises(ValueError, match="is not a prepared dataset"):
    tasks.make("dataset/gsm8k", digest="0" * 16).check(tmp_path)


@pytest.mark.parametrize(
  ("verifier", "metadata", "expected"),
  [
    ("numeric", {"solution": "2 + 2 = 4"}, "2 + 2 = 4\n#### 4"),
    ("numeric", {}, "#### 4"),
    ("math_verify", {"solution": "so \\boxed{4}."}, "so \\boxed{4}."),
    ("math_verify", {"solution": "so four"}, "so four\n\\boxed{4}"),
    ("exact", {}, "4"),
    ("numeric", {"solution": None}, "#### 4"),
    ("numeric boxed", {"solution": "two and two"}, "two and two\n\\boxed{4}"),
    ("numeric boxed", {"solution": "so \\boxed{4}."}, "so \\boxed{4}."),
    ("numeric hash", {"solution": "so \\boxed{4}."}, "so \\boxed{4}.\n#### 4"),
    ("numeric tag", {"solution": "so \\boxed{4}."}, "so \\boxed{4}.\n<answer>4</answer>"),
    ("numeric last_line", {"solution": "2 and 2"}, "2 and 2\n4"),
    ("exact tag", {}, "<answer>4</answer>"),
  ],
)
def test_a_solution_is_a_response_that_is_paid_for(verifier, metadata, expected):
  name, *answer_format = verifier.split()
  options = {"answer_format": answer_format[0]} if answer_format else {}
  task = tasks.make("jsonl:some.jsonl", verifier=name, **options)
  example = tasks.Example(0, "2 + 2?", "4", json.dumps(metadata))
  assert task.solution(example) == expected
  assert task.answer(expected) == "4"
  if name != "math_verify":  # it wants a process of its own
    assert task.score(example, expected).status == "ok"
