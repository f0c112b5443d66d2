"""`python -m vespo_jax.data`: what it prints, its exit codes, and training on what it prepares."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vespo_jax import config as config_lib
from vespo_jax import config_replay, data, problem_sets
from vespo_jax.config import ConfigError
from vespo_jax.tokenizers import byte_tokenizer

REPOSITORY = Path(__file__).parent.parent
CONFIG = REPOSITORY / "configs" / "gsm8k.py"
SMALL = {  # a policy from random weights in the place of SmolLM2
  "policy.path": "",
  "policy.width": 32,
  "policy.layers": 2,
  "policy.heads": 2,
  "policy.kv_heads": 1,
  "policy.head_width": 16,
  "policy.mlp_width": 64,
  "lora.rank": 0,
  "updates": 2,
  "staleness.minibatches": 2,
  "sampler.max_new_tokens": 8,
  "evaluation.problems": 200,
  "evaluation.samples_per_problem": 2,
}


def write_gsm8k(directory, train=40, test=12):
  """A small dataset of GSM8K's layout."""
  directory.mkdir()
  for name, first, count in (("train", 0, train), ("test", train, test)):
    rows = [
      {"question": f"Ann has {i} pens and buys 2. How many?", "answer": f"{i}+2\n#### {i + 2}"}
      for i in range(first, first + count)
    ]
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    (directory / f"{name}.jsonl").write_text(lines)
  return directory


def flags(**settings):
  return [f"--config.{key}={value}" for key, value in settings.items()]


def parse(data_dir, *arguments, workdir="w"):
  argv = [f"--config={CONFIG}", *flags(**SMALL), f"--config.task.data_dir={data_dir}", *arguments]
  return config_lib.parse(["train", f"--workdir={workdir}", *argv])[0]


def test_prepare_says_what_it_did_and_list_what_there_is(tmp_path, capsys):
  source, data_dir = write_gsm8k(tmp_path / "gsm8k"), f"--data_dir={tmp_path}/data"
  with pytest.raises(ConfigError, match="task.name='dataset/gsm8k': it is not prepared .*`python "
                                        "-m vespo_jax.data prepare gsm8k --source="):  # fmt: skip
    parse(tmp_path / "data")
  assert data.main(["data", "prepare", "gsm8k", f"--source={source}", data_dir]) == 0
  said = capsys.readouterr().out
  assert "gsm8k: read 52 rows of 2 files" in said and "train: kept 40 of 40" in said
  assert "--config.task.name=dataset/gsm8k" in said
  assert data.main(["data", "list", data_dir]) == 0
  listed = capsys.readouterr().out
  assert "HuggingFaceH4/MATH-500" in listed and ": 12 test, 40 train" in listed
  config = parse(tmp_path / "data")
  assert (config.task.train_size, config.task.test_size) == (0, 0)
  (prepared,) = (tmp_path / "data").glob("gsm8k-*")
  assert config.task.options.digest == prepared.name.removeprefix("gsm8k-")


@pytest.mark.parametrize(
  "arguments,words",
  [
    (["prepare", "gsm9k"], "no dataset 'gsm9k' is known; known: gsm8k"),
    (["prepare", "gsm8k"], "give --source=FILE_OR_DIR, the files of openai/gsm8k"),
    (["prepare", "gsm8k", "--source=/no/such"], "/no/such does not exist"),
  ],
)
def test_what_cannot_be_prepared_is_one_message_and_exit_code_2(arguments, words, capsys, tmp_path):
  assert data.main(["data", *arguments, f"--data_dir={tmp_path}"]) == 2
  said = capsys.readouterr()
  assert said.err.startswith("error: ") and words in said.err and said.err.count("\n") == 1
  assert not said.out


@pytest.mark.parametrize("arguments", [[], ["prepare"], ["prepare", "gsm8k", "--split=dev"]])
def test_bad_usage_is_exit_code_2(arguments, capsys):
  with pytest.raises(SystemExit) as caught:
    data.main(["data", *arguments])
  assert caught.value.code == 2 and "usage: python -m vespo_jax.data" in capsys.readouterr().err


def test_a_data_directory_that_cannot_be_made_is_exit_code_1(tmp_path, capfd):
  (tmp_path / "taken").write_text("")
  source = tmp_path / "train.jsonl"
  source.write_text('{"question": "1 + 1?", "answer": "#### 2"}\n')
  flags = [f"--source={source}", f"--data_dir={tmp_path / 'taken'}"]
  assert data.main(["data", "prepare", "gsm8k", *flags]) == 1
  told = capfd.readouterr().err
  assert "taken" in told and "Traceback" not in told


def test_a_file_of_ones_own_is_one_config_line(tmp_path):
  file = tmp_path / "mine.jsonl"
  line = f"--config.task.name=jsonl:{file}"
  with pytest.raises(ConfigError, match="task.name='jsonl:.*mine.jsonl' does not exist"):
    parse(tmp_path, line)
  file.write_text('{"prompt": "Say 1.", "answer": "1"}\n' * 2)
  config = parse(tmp_path, line, "--config.task.options.held_out=0.5")
  assert config.task.options.held_out == 0.5
  kept = f"--config.task.options.digest={config.task.options.digest}"
  assert parse(tmp_path, line, kept).task.options.digest == config.task.options.digest
  file.write_text('{"prompt": "Say 2.", "answer": "2"}\n' * 2)
  with pytest.raises(ConfigError, match="it has changed"):
    parse(tmp_path, line, kept)


@pytest.mark.parametrize("mixed", [False, True])
def test_a_run_is_resumed_with_the_problems_it_began_with(tmp_path, mixed):
  file, workdir = tmp_path / "mine.jsonl", tmp_path / "run"
  file.write_text('{"prompt": "Say 1.", "answer": "1"}\n{"prompt": "Say 2.", "answer": "2"}\n')
  mixture = {"a": {"name": f"jsonl:{file}", "weight": 1, "test_size": 0}}
  line = f"--config.task.name=jsonl:{file}"
  line = f"--config.task.mixture={json.dumps(mixture)}" if mixed else line
  begun = parse(tmp_path, line)
  with contextlib.ExitStack() as stack:  # which prepares them
    problem_sets.open_problems(begun, byte_tokenizer(), stack)
  workdir.mkdir()
  (workdir / "config.json").write_text(json.dumps(begun.to_dict()))
  file.write_text('{"prompt": "Say 3.", "answer": "3"}\n')
  assert parse(tmp_path, line, workdir=workdir) == begun
  assert parse(tmp_path, line) != begun  # another run
  shutil.rmtree(next(path for path in tmp_path.glob("jsonl-*")))
  with pytest.raises(ConfigError, match="it has changed.*; the run in --workdir began with those"):
    parse(tmp_path, line, workdir=workdir)


@pytest.mark.parametrize("key", ["train_size", "test_size"])
def test_all_there_are_cannot_be_generated(key):
  debug = f"--config={REPOSITORY}/configs/debug.py"
  with pytest.raises(ConfigError, match=f"task.{key}=0 must be at least 1: .* generated"):
    config_lib.parse(["train", "--workdir=w", debug, f"--config.task.{key}=0"])


def mixed(tmp_path, **sums):
  """The checked config of a file of one's own and generated sums, three to one."""
  mine = tmp_path / "mine.jsonl"
  mine.write_text("".join(f'{{"prompt": "Say {i}.", "answer": "{i}"}}\n' for i in range(40)))
  mixture = {
    "mine": {"name": f"jsonl:{mine}", "weight": 3, "options": {"held_out": 0.25}, "test_size": 0},
    "sums": {"name": "reasoning_gym/chain_sum", "weight": 1, "train_size": 20} | sums,
  }
  return parse(tmp_path / "data", f"--config.task.mixture={json.dumps(mixture)}")


def test_files_may_be_mixed_with_what_is_generated(tmp_path):
  config = mixed(tmp_path, test_size=100)
  assert re.fullmatch("[0-9a-f]{16}", config.task.mixture.mine.options.digest)
  assert config.task.mixture.mine.options.held_out == 0.25
  assert "options" not in config.task.mixture.sums
  with contextlib.ExitStack() as stack:
    train, held_out = problem_sets.open_problems(config, byte_tokenizer(), stack)
  assert len(train.examples) == 50
  # of 40 problems every fourth is held out, and there is a sum to every three of them
  assert [example.question[:3] for example in map(held_out.examples.__getitem__, range(13))].count(
    "Say"
  ) == 10
  with pytest.raises(ConfigError, match="task.mixture.sums.test_size=0 must be at least 1"):
    mixed(tmp_path, test_size=0)


def test_long_prompts_are_left_out(tmp_path, capfd):
  mine = tmp_path / "mine.jsonl"
  rows = ({"prompt": f"{i:03d}" + "x" * (i % 37), "answer": str(i)} for i in range(400))
  mine.write_text("".join(f"{json.dumps(row)}\n" for row in rows))

  def config_of(limit):
    name, sizes = f"--config.task.name=jsonl:{mine}", ("train_size=0", "test_size=0")
    keys = (*sizes, f"max_prompt_tokens={limit}")
    return parse(tmp_path / "data", name, *(f"--config.task.{key}" for key in keys))

  def opened(config):
    with contextlib.ExitStack() as stack:
      return [
        (problems.prompts(range(len(problems.examples))), [one.id for one in problems.examples])
        for problems in problem_sets.open_problems(config, byte_tokenizer(), stack)
      ]

  everything = opened(config_of(0))
  limit = int(np.median([len(prompt) for prompt in everything[0][0]]))
  capfd.readouterr()
  left_out = 0
  for (before, _), (after, ids) in zip(everything, opened(config_of(limit)), strict=True):
    assert after == [prompt for prompt in before if len(prompt) <= limit]
    assert 0 < len(after) < len(before) and ids == [*range(len(after))]
    left_out += len(before) - len(after)
  assert (
    f"mine.jsonl: {left_out} problems have prompts of over {limit} tok" in capfd.readouterr().err
  )
  with pytest.raises(
    ConfigError, match="max_prompt_tokens=1 leaves nothing to train on of 'jsonl:"
  ):
    opened(config_of(1))
  origins = [config_replay.origin(config_of(limit))["problems"] for limit in (0, limit)]
  assert origins[0] != origins[1]  # what one run sampled is not for the other


def test_a_question_held_out_by_one_task_is_trained_on_by_none(tmp_path, capfd):
  files = {}
  for name, numbers in {"a": range(40), "b": range(20, 50), "all": [0, 1]}.items():
    files[name] = tmp_path / f"{name}.jsonl"
    rows = ({"prompt": f"Say {i}.", "answer": str(i)} for i in numbers)
    files[name].write_text("".join(f"{json.dumps(row)}\n" for row in rows))

  def opened(**mixture):
    config = parse(tmp_path / "data", f"--config.task.mixture={json.dumps(mixture)}")
    with contextlib.ExitStack() as stack:
      return problem_sets.open_problems(config, byte_tokenizer(), stack)

  def own(name, **options):
    task = {"name": f"jsonl:{files[name]}", "weight": 1, "options": options}
    return task | {"train_size": 0, "test_size": 0}

  train, held_out = opened(a=own("a", held_out=0.2), b=own("b", held_out=0.7))
  asked, kept = (
    {part: {example.question for example in split.parts[part].examples} for part in "ab"}
    for split in (train, held_out)
  )
  assert not (asked["a"] | asked["b"]) & (kept["a"] | kept["b"])
  dropped = 32 - len(asked["a"])
  assert dropped > 0 and len(train) == len(asked["a"]) + len(asked["b"])
  assert f"a: {dropped} training problems are left out" in capfd.readouterr().err
  assert [example.id for example in train.parts["a"].examples] == [*range(len(asked["a"]))]
  with pytest.raises(ConfigError, match="task.mixture.b has nothing to train on"):
    opened(a=own("a", test_path=str(files["all"])), b=own("all"))


@pytest.mark.slow
@pytest.mark.parametrize("own_file", [False, True])
def test_two_updates_as_a_user_makes_them(own_file, tmp_path):
  """From the publisher's files, or from a file of one's own, to a finished run and its evaluation:
  200 problems are asked for, and those that are held out are asked."""
  task = ["--config.task.name=dataset/gsm8k"]
  if own_file:
    rows = [{"prompt": f"Say {i}.", "answer": f"{i}"} for i in range(40)]
    (tmp_path / "mine.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    task = [f"--config.task.name=jsonl:{tmp_path}/mine.jsonl", "--config.task.options.held_out=0.3"]
  else:
    source = write_gsm8k(tmp_path / "gsm8k")
    run("data", "prepare", "gsm8k", f"--source={source}", f"--data_dir={tmp_path}/data")
  settings = [*flags(**SMALL), f"--config.task.data_dir={tmp_path}/data", *task]
  output = run("train", f"--config={CONFIG}", f"--workdir={tmp_path}/run", *settings)
  result = json.loads((tmp_path / "run" / "result.json").read_text())
  assert (result["stop_reason"], result["updates"]) == ("finished", 2), output
  assert result["evaluation_after"]["problems"] == 12
  first = (tmp_path / "run" / "rollouts" / "000001.jsonl").read_text().splitlines()
  records = [json.loads(line) for line in first]
  prompts = [record["prompt"] for record in records]
  # the 12 problems that are held out are asked, whatever number was said
  what = [f"--workdir={tmp_path}/run", "--samples=1"]
  if not own_file:
    problems = ["--task=dataset/gsm8k", f"--data_dir={tmp_path}/data", "--test_size=0"]
    what = [f"--model={tmp_path}/run/model", *problems, "--max_new_tokens=4"]
  told = run("evaluate", *what, f"--out={tmp_path}/records", "--json").splitlines()
  (evaluated,) = [json.loads(line) for line in told if line.startswith("{")]
  assert evaluated["problems"] == 12, evaluated
  if not own_file:  # the same command, after other files were prepared, is another run
    (source / "train.jsonl").write_text('{"question": "2?", "answer": "#### 2"}\n')
    run("data", "prepare", "gsm8k", f"--source={source}", f"--data_dir={tmp_path}/data")
    again = [f"--config={CONFIG}", f"--workdir={tmp_path}/run", *settings]
    assert "holds a run with another task.options" in run("train", *again, code=2)
  start = "Say " if own_file else "Ann has "
  assert prompts and all(prompt.startswith(start) for prompt in prompts), prompts
  for record in records:  # each beside the answer to its own question
    number = int(re.search("[0-9]+", record["prompt"])[0])
    assert int(record["answer"]) == number + 2 * (not own_file), record


def run(module, *arguments, code=0):
  """Runs a command; returns what it printed."""
  done = subprocess.run(
    [sys.executable, "-m", f"vespo_jax.{module}", *arguments],
    cwd=REPOSITORY,
    env=os.environ,
    capture_output=True,
    text=True,
    timeout=400,
  )
  assert done.returncode == code, done.stderr
  return done.stdout + done.stderr
