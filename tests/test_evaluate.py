"""The command on a real run: it finds what the run found, and changes nothing there."""

import json
import os
import shutil
import subprocess
import sys

import jax
import pytest

from tests.test_end_to_end import debug_config
from vespo_jax import (
  convert,
  evaluate,
  exports,
  launch,
  metrics,
  models,
  subjects,
  tokenizers,
)
from vespo_jax.evaluation import records
from vespo_jax.learner import manifest
from vespo_jax.tasks import custom

pytestmark = pytest.mark.usefixtures("no_report")
SMALL = {
  "updates": 2,
  "staleness.minibatches": 1,
  "checkpoint.every": 1,
  "evaluation.every": 1,
  "sampler.stop_strings": ("#%",),  # which nothing has, but everybody must be able to look for
  "evaluation.problems": 6,
  "evaluation.samples_per_problem": 2,
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def evaluated_run(data_dir, tmp_path_factory):
  """Two updates; evaluated before, in the middle, and after."""
  workdir = tmp_path_factory.mktemp("runs") / "run"
  launch.train(debug_config(data_dir, **SMALL), workdir)
  return workdir


def command(*arguments, **flags):
  return evaluate.main(["", *arguments, *(f"--{name}={value}" for name, value in flags.items())])


def test_the_command_finds_what_the_run_found(evaluated_run, capsys, monkeypatch):
  assert command("--json", workdir=evaluated_run) == 0
  printed = capsys.readouterr()
  found = json.loads(printed.out)
  (after,) = [json.loads((evaluated_run / "result.json").read_text())["evaluation_after"]]
  assert {name: found[name] for name in after if name != "pass_at_k"} == {
    name: value for name, value in after.items() if name != "pass_at_k"
  }
  assert found["pass_at_k"]["2"]["value"] == after["pass_at_k"]["2"]
  assert found["step"] == 2 and found["model"] == f"{evaluated_run} after update 2"
  assert "problem 6/6" in printed.err
  written = records.read(evaluated_run / "evaluation" / found["records"].rpartition("/")[2])
  assert written.about.weights == found["weights"]
  assert json.loads(records_summary(found).read_text()) == found
  one = written.records[0][0].responses[0]
  assert one.answer == one.response.strip() and one.logprob < 0 < one.tokens <= 12
  monkeypatch.setattr(subjects, "start_sampler", None)  # what is there is read
  assert command("--json", workdir=evaluated_run) == 0
  assert json.loads(capsys.readouterr().out) == found


def records_summary(found):
  return records.Path(found["records"]).with_suffix(".json")


def test_a_checkpoint_is_evaluated_as_the_run_did_and_nothing_is_changed(evaluated_run, capsys):
  unfinished = evaluated_run / "checkpoints" / "9.orbax-checkpoint-tmp"
  unfinished.mkdir()  # as if the run were saving it at this moment
  before = sorted((evaluated_run / "checkpoints").rglob("*"))
  assert command("--json", workdir=evaluated_run, checkpoint=1) == 0
  found = json.loads(capsys.readouterr().out)
  row = metrics.read(evaluated_run / "metrics.jsonl")[0]
  assert found["accuracy"] == row["evaluation/accuracy"] and found["step"] == 1
  assert sorted((evaluated_run / "checkpoints").rglob("*")) == before
  unfinished.rmdir()
  assert command(workdir=evaluated_run, checkpoint=3) == 2
  assert "no checkpoint of update 3; it has [1, 2]" in capsys.readouterr().err


def test_a_run_that_was_extended_is_what_its_newest_checkpoint_is(evaluated_run, tmp_path):
  """Its model is of the old end; on a machine of several devices a checkpoint is read by one."""
  assert exports.finished_updates(evaluated_run) == 2
  workdir, out = tmp_path / "run", tmp_path / "converted"
  shutil.copytree(evaluated_run, workdir)
  result = json.loads((workdir / "result.json").read_text())
  (workdir / "result.json").write_text(json.dumps(result | {"updates": 1}))
  shutil.copytree(workdir / "checkpoints" / "1", workdir / "checkpoints" / "0")  # an older one
  model = workdir / "model" / "model.safetensors"
  expected = model.read_bytes()
  model.write_bytes(b"of the old end")
  assert exports.finished_updates(workdir) is None
  assert models.load(evaluated_run)
  with pytest.raises(FileNotFoundError, match="gone on since.*vespo_jax.convert"):
    models.load(workdir)
  flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4"
  subprocess.run(
    [sys.executable, "-m", "vespo_jax.convert", f"--model={workdir}", f"--out={out}"],
    check=True,
    timeout=300,
    env={**os.environ, "XLA_FLAGS": flags},
  )
  assert (out / "model.safetensors").read_bytes() == expected
  for change in ({"stop_reason": "preempted"}, {"updates": 2}):
    (workdir / "result.json").write_text(json.dumps(result | change))
    assert exports.finished_updates(workdir) == (2 if "updates" in change else None)
  shutil.rmtree(workdir / "model")
  assert exports.finished_updates(workdir) is None


def test_any_checkpoint_of_a_finished_run_is_converted(evaluated_run, tmp_path, capsys):
  assert command("--json", workdir=evaluated_run, checkpoint=1) == 0
  found = json.loads(capsys.readouterr().out)
  flags = [f"--model={evaluated_run}", "--checkpoint=1", f"--out={tmp_path / 'one'}"]
  assert convert.main(["", *flags]) == 0
  _, params, _ = models.load(tmp_path / "one")
  assert manifest.digest_of(params) == found["weights"]
  for model, step, words in (
    (evaluated_run, 3, "no checkpoint of update 3; it has [1, 2]"),
    (tmp_path / "one", 1, "--checkpoint=1"),
  ):
    flags = [f"--model={model}", f"--checkpoint={step}", f"--out={tmp_path / 'none'}"]
    assert convert.main(["", *flags]) == 2
    assert words in capsys.readouterr().err


def test_damage_is_named(evaluated_run, tmp_path, capsys):
  workdir = tmp_path / "run"
  shutil.copytree(evaluated_run, workdir)
  (workdir / "result.json").unlink()
  (workdir / "checkpoints" / "2" / manifest.NAME).write_text("")
  assert convert.main(["", f"--model={workdir}", f"--out={tmp_path / 'older'}"]) == 0
  said = capsys.readouterr()
  assert "passed over" in said.err and manifest.NAME in said.err
  assert "after update 1 -> " in said.out
  for text, why in (('{"updates"', "no JSON"), ("[]", "no JSON object")):
    (workdir / "result.json").write_text(text)
    assert command(workdir=workdir) == 1
    said = capsys.readouterr().err
    assert f"{workdir / 'result.json'} is damaged" in said and why in said


def test_what_does_not_fit_the_models_positions_is_refused(evaluated_run, capsys):
  assert command(workdir=evaluated_run, max_new_tokens=32768) == 2
  assert "do not fit the model's 32768 positions" in capsys.readouterr().err


@pytest.mark.slow
def test_devices_share_a_policy_where_they_are_as_many_as_the_runs(tmp_path, data_dir):
  """The run's samplers have two devices each, and one machine that evaluates it has them."""
  spec = models.ModelSpec(260, 16, 1, 2, 2, 8, 24)
  models.save(
    tmp_path / "policy", spec, models.init(spec, jax.random.key(0)), tokenizers.byte_tokenizer()
  )
  argv = ["--config=configs/debug.py", f"--workdir={tmp_path / 'run'}"]
  flags = {"policy.path": tmp_path / "policy", "task.data_dir": data_dir, "sampler.tensor": 2}
  flags |= {name: value for name, value in SMALL.items() if name != "sampler.stop_strings"}
  argv += [f"--config.{name}={value}" for name, value in flags.items()]
  evaluated = [f"--workdir={tmp_path / 'run'}", "--temperature=0"]
  script = f"""if True:
    from vespo_jax import evaluate, subjects, train
    assert train.main(["", *{argv!r}]) == 0
    assert subjects.of_run(subjects.Path({str(tmp_path / "run")!r}), None).tensor == 2
    for more in ("--checkpoint=1",), (), ("--tensor=1", "--out={tmp_path / "one"}"):
      assert evaluate.main(["", *{evaluated!r}, *more]) == 0"""
  two = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=2"
  environment = {**os.environ, "XLA_FLAGS": two}
  subprocess.run([sys.executable, "-c", script], check=True, timeout=500, env=environment)
  assert subjects.of_run(tmp_path / "run", None).tensor == 1  # here is one device
  assert command(workdir=tmp_path / "run", temperature=0, out=tmp_path / "here") == 0
  folders = tmp_path / "run" / "evaluation", tmp_path / "one", tmp_path / "here"
  answers = [
    [[one.response for one in record.responses] for record in records.read(path).records[0]]
    for path in map(records.newest, folders)
  ]
  assert answers[0] == answers[1] == answers[2]


def test_two_evaluations_are_compared(evaluated_run, tmp_path, capsys):
  for seed, out in ((0, tmp_path / "a"), (1, tmp_path / "b")):
    assert command(workdir=evaluated_run, seeds=seed, out=out, problems=4) == 0
  capsys.readouterr()
  assert command("--compare", str(tmp_path / "a"), str(tmp_path / "b")) == 0
  text = capsys.readouterr().out
  assert "4 problems x 2 samples" in text and "differs: seeds: [0], [1]" in text
  assert text.splitlines()[-1].startswith(f"records: {tmp_path / 'a'}/update000002-")
  assert command("--compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json") == 0
  found = json.loads(capsys.readouterr().out)
  assert found["differences"]["avg@2"]["low"] <= found["differences"]["avg@2"]["high"]
  assert command(workdir=evaluated_run) == 0
  (tmp_path / "run").mkdir()  # a run that has not been evaluated yet has other records
  for name in ("config.json", "metrics.jsonl"):
    shutil.copy(evaluated_run / name, tmp_path / "run")
  assert command("--compare", str(tmp_path / "a"), str(tmp_path / "run")) == 2
  assert "run has no finished evaluation: make one" in capsys.readouterr().err
  assert command("--compare", str(tmp_path / "a"), str(evaluated_run)) == 2
  assert "problems is 4 of one" in capsys.readouterr().err


def test_a_model_without_a_run(evaluated_run, data_dir, tmp_path, capsys):
  task = {"task": "reasoning_gym/spell_backward", "task_options": '{"answer_format": "text"}'}
  flags = {**task, "data_dir": data_dir, "out": tmp_path, "test_size": 50, "problems": 6}
  flags |= {"max_new_tokens": 12, "preset": "vcpo", "temperature": 1, "top_p": 1}
  assert command("--json", model=evaluated_run / "model", **flags, samples=2) == 0
  found = json.loads(capsys.readouterr().out)
  result = json.loads((evaluated_run / "result.json").read_text())
  assert found["accuracy"] == result["evaluation_after"]["accuracy"] and found["step"] is None
  greedy = {**flags, "temperature": 0}
  assert command("--json", model=evaluated_run / "model", **greedy, samples=1) == 0
  found = json.loads(capsys.readouterr().out)
  assert (found["temperature"], found["top_p"], found["samples"]) == (0.0, 1.0, 1)
  reward = "tests.tasks.my_rewards:odd"
  assert command(model=evaluated_run / "model", **greedy, samples=1, reward=reward) == 0
  text = capsys.readouterr().out
  task = f"reasoning_gym/spell_backward, scored by {custom.identity(reward)}"
  assert text.startswith(f"{evaluated_run / 'model'} on {task}\nheld-out accuracy: ")
  assert command("--compare", found["records"], text.split("records: ")[1].strip()) == 2
  assert "cannot be compared: reward is '' of one, 'tests.tasks.my" in capsys.readouterr().err


def test_a_reward_that_always_fails_ends_what_it_scores(evaluated_run, data_dir, tmp_path, capfd):
  reward = "tests.tasks.my_rewards:raises"
  task = {"task": "reasoning_gym/spell_backward", "data_dir": data_dir, "test_size": 50}
  flags = {**task, "out": tmp_path, "max_new_tokens": 12, "problems": 6, "reward": reward}
  assert command(model=evaluated_run / "model", **flags) == 1
  told = capfd.readouterr().err
  assert "my_rewards.py', line" in told and "error: task.reward fails on all of 6 answers" in told
  with pytest.raises(OSError, match="task.reward fails on all of"):
    launch.train(debug_config(data_dir, **SMALL, **{"task.reward": reward}), tmp_path / "run")


@pytest.mark.parametrize(
  "flags, message",
  [
    ({"workdir": "nowhere"}, "is nowhere a run directory?"),
    ({"problems": 51}, "--problems=51 must be from 1 to 50"),
    ({"problems": 0}, "--problems=0 must be"),
    ({"samples": 0}, "samples_per_prompt=0 is out of range"),
    ({"samples": 1001}, "--samples=1001 must be at most 1000"),
    ({"temperature": -1}, "temperature=-1.0 is out of range"),
    ({"temperature": 0, "samples": 2}, "--temperature=0 always answers the same"),
    ({"temperature": 0, "seeds": "1,2"}, "--temperature=0 always answers the same"),
    ({"top_p": 0}, "top_p=0.0 is out of range"),
    ({"seeds": "1,1"}, "must be different integers"),
    ({"seeds": "-1"}, "must be different integers"),
    ({"sequences": 0}, "--sequences=0 must be"),
    ({"tensor": 2}, "--tensor=2: this process has 1 devices"),
    ({"attention": "paged"}, "--attention='paged' needs a TPU"),
    ({"preset": "vespo"}, "not one of reasoning_gym/spell_backward: give --samples"),
    ({"workdir": "", "model": "nowhere", "task": "reasoning_gym/gcd"}, "no such model"),
  ],
)
def test_bad_usage_is_one_message_before_anything_is_loaded(
  flags, message, evaluated_run, capsys, monkeypatch
):
  monkeypatch.setattr(models, "load", None)
  given = {"workdir": evaluated_run} | flags
  assert command(**{name: value for name, value in given.items() if value != ""}) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
  "arguments",
  [
    (),
    ("--workdir=x", "--model=y"),
    ("--model=x",),
    ("--model=x", "--task=y", "--checkpoint=1"),
    ("--workdir=x", "--task=y"),
    ("--workdir=x", "--reward=y:f"),
    ("--compare", "x", "y", "--samples=2"),
    ("--workdir=x", "--seeds=a"),
    ("--model=x", "--task=y", "--task_options=[]"),
    ("--workdir=x", "--preset=gpt"),
  ],
)
def test_what_makes_no_command_is_refused(arguments, capsys):
  with pytest.raises(SystemExit) as error:
    command(*arguments)
  assert error.value.code == 2 and "error: " in capsys.readouterr().err


def test_a_run_has_a_task_of_its_own(capsys):
  with pytest.raises(SystemExit):
    command(workdir="x", task="y")
  assert "--task needs --model: a run is evaluated on its own task" in capsys.readouterr().err


def test_a_model_and_its_task_are_checked_first(evaluated_run, capsys, monkeypatch):
  monkeypatch.setattr(models, "load", None)
  for task, message in (("nowhere/gcd", "unknown task family"), ("reasoning_gym/gdc", "gcd")):
    assert command(model=evaluated_run / "model", task=task) == 2
    assert message in capsys.readouterr().err
  assert command(model=evaluated_run / "model", task="reasoning_gym/gcd", test_size=0) == 2
  assert "--test_size=0 must be" in capsys.readouterr().err
  assert command(model=evaluated_run / "model", task="reasoning_gym/gcd", reward="mine.py:f") == 2
  assert "--reward=mine.py:f: " in capsys.readouterr().err


def test_what_stops_an_evaluation_is_told_by_the_exit_code(evaluated_run, capsys, monkeypatch):
  for error, code in ((KeyboardInterrupt(), 75), (OSError("disk full"), 1), (ValueError("x"), 2)):

    def fail(subject, seeds, error=error):
      raise error

    monkeypatch.setattr(subjects, "evaluate", fail)
    assert command(workdir=evaluated_run) == code
  assert "the same command goes on" in capsys.readouterr().err
