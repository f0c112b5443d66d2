"""Records on disk: whole or not at all, gone on with, and checked."""

import dataclasses
import json
import os

import numpy as np
import pytest

from tests.evaluation.example import about, evaluated, record
from vespo_jax.evaluation import records
from vespo_jax.evaluation.record_writer import RecordWriter
from vespo_jax.evaluation.session import digest_of_asked

ABOUT = about(problems=2, seeds=[0, 5])
RECORDS = [record(seed, problem, [1, 0]) for seed in (0, 5) for problem in range(2)]


def write(path, these=RECORDS, finish=True, of=ABOUT):
  with RecordWriter(path, of) as writer:
    for one in these:
      writer.write(one)
    if finish:
      writer.finish()
  return path


def test_what_is_written_is_read(tmp_path):
  path = write(tmp_path / "deep" / "a.jsonl", RECORDS[::-1])
  found = records.read(path)
  assert found == records.Evaluated(ABOUT, [RECORDS[:2], RECORDS[2:]])
  assert found.rewards_SPR.tolist() == [[[1, 0], [1, 0]]] * 2
  assert [file.name for file in path.parent.iterdir()] == ["a.jsonl"]


def test_an_unfinished_file_has_another_name_and_is_gone_on_with(tmp_path):
  whole = write(tmp_path / "whole.jsonl").read_bytes()
  path = write(tmp_path / "a.jsonl", RECORDS[:2], finish=False)
  partial = tmp_path / "a.jsonl.partial"
  assert not path.exists()
  with pytest.raises(ValueError, match="not whole: 2 of 4 records are missing"):
    records.read(partial)
  with partial.open("ab") as file:
    file.write(b'{"seed": 5, "prob')  # killed while it wrote
  with RecordWriter(path, dataclasses.replace(ABOUT, model="the same, elsewhere")) as writer:
    assert writer.done == {(0, 0), (0, 1)}
    with pytest.raises(ValueError, match="not whole"):
      writer.finish()
    for one in RECORDS[2:]:
      writer.write(one)
    writer.finish()
  assert path.read_bytes() == whole and not partial.exists()


def test_an_option_that_is_a_list_is_the_same_when_it_is_gone_on_with(tmp_path):
  """A config gives it as a tuple, and JSON has none."""
  of = dataclasses.replace(ABOUT, options={"operators": ("+", "-")})
  write(tmp_path / "a.jsonl", RECORDS[:1], finish=False, of=of)
  write(tmp_path / "a.jsonl", RECORDS[1:], of=of)
  assert records.read(tmp_path / "a.jsonl").about.options == {"operators": ["+", "-"]}


def test_a_file_killed_in_its_first_line_is_begun_again(tmp_path):
  (tmp_path / "a.jsonl.partial").write_bytes(b'{"format": 1, "ab')
  assert records.read(write(tmp_path / "a.jsonl")).about == ABOUT


def test_another_evaluation_is_not_gone_on_with(tmp_path):
  write(tmp_path / "a.jsonl", RECORDS[:1], finish=False)
  kept = (tmp_path / "a.jsonl.partial").read_bytes()
  with pytest.raises(ValueError, match="holds another evaluation"):
    RecordWriter(tmp_path / "a.jsonl", dataclasses.replace(ABOUT, temperature=0.5))
  assert (tmp_path / "a.jsonl.partial").read_bytes() == kept


def test_two_processes_do_not_write_one_file(tmp_path):
  with RecordWriter(tmp_path / "a.jsonl", ABOUT):
    with pytest.raises(ValueError, match="being written by another process"):
      RecordWriter(tmp_path / "a.jsonl", ABOUT)
  write(tmp_path / "a.jsonl")


def test_a_link_is_not_followed_and_a_strange_file_not_changed(tmp_path):
  (tmp_path / "precious").write_text("not ours\nhalf a line")
  (tmp_path / "a.jsonl.partial").symlink_to(tmp_path / "precious")
  with pytest.raises(OSError):
    RecordWriter(tmp_path / "a.jsonl", ABOUT)
  os.replace(tmp_path / "precious", tmp_path / "b.jsonl.partial")
  with pytest.raises(ValueError, match="line 1"):
    RecordWriter(tmp_path / "b.jsonl", ABOUT)
  assert (tmp_path / "b.jsonl.partial").read_text() == "not ours\nhalf a line"


def test_the_name_says_the_update_and_differs_with_anything_but_the_name():
  assert about(model="x").file_name == about(model="y").file_name
  assert about().file_name.startswith("update000003-")
  assert about(step=None).file_name.startswith("model-")
  changes = dict(
    weights="cd",
    problem_set="ab",
    samples=3,
    seeds=[1],
    temperature=0.0,
    top_p=0.5,
    dtype="int8",
    reward="my:f 12",
    attention="flash",
  )
  names = {about(**{name: value}).file_name for name, value in changes.items()}
  assert len(names | {about().file_name}) == len(changes) + 1


def changed(line, **fields):
  return json.dumps({**json.loads(line), **fields})


def changed_response(line, **fields):
  value = json.loads(line)
  value["responses"][0] |= fields
  return json.dumps(value)


def changed_header(line, **fields):
  value = json.loads(line)
  value["about"] |= fields
  return json.dumps(value)


@pytest.mark.parametrize(
  "number, change, message",
  [
    (1, lambda line: "[]", "not the records of an evaluation"),
    (1, lambda line: changed(line, format=2), "format 1"),
    (1, lambda line: changed(line, about=[]), "not an object of model"),
    (1, lambda line: changed_header(line, problems=0), "no problem"),
    (1, lambda line: changed_header(line, seeds=[5, 5]), "one seed twice"),
    (1, lambda line: changed_header(line, seeds="05"), "seeds='05' is not"),
    (1, lambda line: changed_header(line, more=1), "not an object of model"),
    (2, lambda line: line[:-3], "line 2: "),
    (2, lambda line: "[" * 100_000, "line 2: "),
    (2, lambda line: "\xff", "line 2: "),
    (2, lambda line: changed(line, seed=1), "was not asked"),
    (2, lambda line: changed(line, problem=2), "was not asked"),
    (2, lambda line: changed(line, problem=True), "problem=True is not int"),
    (2, lambda line: changed(line, problem=1), "there twice"),
    (2, lambda line: changed(line, question=None), "question=None is not str"),
    (2, lambda line: changed(line, responses=[]), "0 responses, not 2"),
    (2, lambda line: changed(line, responses=[1, 2]), "responses="),
    (2, lambda line: changed_response(line, reward=2), "no verdict"),
    (2, lambda line: changed_response(line, reward=float("nan")), "reward=nan is not float"),
    (2, lambda line: changed_response(line, status="fine"), "no verdict"),
    (2, lambda line: changed_response(line, finish="fine"), "no response ends so"),
    (2, lambda line: changed_response(line, tokens=-1), "no response ends so"),
  ],
)
def test_what_is_no_record_is_refused_by_its_line(number, change, message, tmp_path):
  lines = write(tmp_path / "a.jsonl").read_text().splitlines()
  assert changed_header(lines[0]) == lines[0] and changed_response(lines[1]) == lines[1]
  lines[number - 1] = change(lines[number - 1])
  (tmp_path / "b.jsonl").write_text("\n".join(lines) + "\n", encoding="latin-1")
  with pytest.raises(ValueError) as error:
    records.read(tmp_path / "b.jsonl")
  assert f"b.jsonl, line {3 if 'there twice' in message else number}: " in str(error.value)
  assert message in str(error.value) and len(str(error.value)) < 500


def test_records_that_tell_no_reward_are_read_and_gone_on_with(tmp_path):
  write(tmp_path / "a.jsonl", RECORDS[:1], finish=False)
  path = tmp_path / "a.jsonl.partial"
  late = b', "reward": "", "asked": "", "attention": "dense"}}\n'
  path.write_bytes(path.read_bytes().replace(late, b"}}\n", 1))
  assert b'"asked"' not in path.read_bytes()
  assert records.read(write(tmp_path / "a.jsonl", RECORDS[1:])).about == ABOUT


def test_a_file_that_was_cut_is_refused(tmp_path):
  data = write(tmp_path / "a.jsonl").read_bytes()
  end = data.rstrip().rfind(b"\n") + 1
  for cut, message in ((len(data) - 1, "middle of a line"), (end, "1 of 4 records are missing")):
    (tmp_path / "b.jsonl").write_bytes(data[:cut])
    with pytest.raises(ValueError, match=message):
      records.read(tmp_path / "b.jsonl")


def test_a_header_that_promises_too_much_costs_nothing(tmp_path):
  path = tmp_path / "a.jsonl"
  huge = dataclasses.asdict(about(problems=10**15))
  path.write_bytes(records.line({"format": 1, "about": huge}))
  with pytest.raises(ValueError, match="not whole"):
    records.read(path)


def test_the_newest_records_of_a_run(tmp_path):
  for number, name in enumerate(("b.jsonl", "a.jsonl", "c.jsonl.partial")):
    (tmp_path / "evaluation").mkdir(exist_ok=True)
    (tmp_path / "evaluation" / name).touch()
    os.utime(tmp_path / "evaluation" / name, (number, number))
  newest = tmp_path / "evaluation" / "a.jsonl"
  assert {records.newest(place) for place in (tmp_path, newest.parent, newest)} == {newest}
  for nothing in (tmp_path / "nowhere", tmp_path / "evaluation" / "d.jsonl"):
    with pytest.raises(ValueError, match="no finished evaluation"):
      records.newest(nothing)


def test_hostile_text_is_ascii_on_disk(tmp_path):
  one = record(0, 0, [1, 1])
  responses = [dataclasses.replace(one.responses[0], response="\x1b[2J\u2028\u202e\n")] * 2
  hostile = dataclasses.replace(one, responses=responses)
  path = write(tmp_path / "a.jsonl", [hostile], of=about(problems=1))
  assert path.read_bytes().isascii() and b"\x1b" not in path.read_bytes()
  assert records.read(path).records[0][0] == hostile


def test_the_example_is_as_records_are(tmp_path):
  made = evaluated(np.ones((2, 3, 2)))
  of = [one for records_of in made.records for one in records_of]
  assert records.read(write(tmp_path / "a.jsonl", of, of=made.about)) == made


def test_other_prompts_or_stop_ids_are_another_evaluation():
  """As of a chat template that was mended; a record of before they were kept keeps its name."""
  prompts = [[1, 2], [3]]
  names = {
    about(asked=digest_of_asked(some, stops)).file_name
    for some, stops in (
      (prompts, (0,)),
      ([[1], [2, 3]], (0,)),
      (prompts, (0, 4)),
      (prompts[:1], ()),
    )
  }
  assert len(names | {about().file_name}) == 5
  assert about(asked=digest_of_asked([np.array([1, 2]), [3]], [0])).file_name in names
