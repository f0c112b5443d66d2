"""The command line of a run: exit codes, and what is found out before anything heavy is loaded."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.marks import slow_but
from vespo_jax import command, launch, objectives, parts, problem_sets, train
from vespo_jax import config as config_lib
from vespo_jax.config import ConfigError

REPOSITORY = Path(__file__).parent.parent
DEBUG = str(REPOSITORY / "configs" / "debug.py")


def parse(*arguments, config=DEBUG):
  return config_lib.parse(["train", f"--config={config}", "--workdir=w", *arguments])


@pytest.mark.parametrize(
  "outcome,code",
  [
    (launch.Diverged("no"), 3),
    (launch.ChildDied("grader", -9), 1),
    (launch.SamplersFailed([], 0), 1),
    (launch.CheckpointError("no"), 1),
    (OSError(28, "No space left on device"), 1),
    (TimeoutError("no"), 1),
    (ConfigError("no"), 2),
    ({"stop_reason": "preempted", "updates": 4}, 75),
  ],
)
def test_exit_codes_say_how_a_run_ended(outcome, code, monkeypatch, capsys):
  def ends(config, workdir, stop):
    if isinstance(outcome, Exception):
      raise outcome
    return outcome

  monkeypatch.setattr(launch, "train", ends)
  monkeypatch.setattr(command, "_stop_on_signals", lambda seconds: lambda: False)
  monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "0.5")
  assert train.main(["train", f"--config={DEBUG}", "--workdir=w"]) == code
  printed = capsys.readouterr()
  assert ("error: " in printed.err) == isinstance(outcome, Exception)
  assert ("stopped after update 4" in printed.out) == (code == 75)


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_given(flag, capsys):
  assert train.main(["vespo_jax/train.py", flag]) == 0
  text = capsys.readouterr().out
  assert "python -m vespo_jax.train --config=FILE" in text and "75\npreempted" in text


def test_what_is_found_out_later_is_the_configs_fault_too(tmp_path, monkeypatch):
  """A policy whose numbers are damaged, and a task with too few problems."""
  good, _ = parse()
  model = shutil.copytree(good.policy.path, tmp_path / "model")
  (model / "model.safetensors").write_bytes(b"damaged")
  config, _ = parse(f"--config.policy.path={model}")
  with pytest.raises(ConfigError, match="policy.path=.*model.safetensors is not a readable"):
    parts.load_policy(config)

  def too_few(task, **options):
    raise ValueError("only 3 distinct questions; task.train_size + task.test_size = 250")

  monkeypatch.setattr(parts.tasks, "open_splits", too_few)
  with contextlib.ExitStack() as stack, pytest.raises(ConfigError, match="task.train_size"):
    problem_sets.open_problems(good, None, stack)


def test_the_command_line_exits_with_two_and_one_message_before_anything_heavy():
  done = subprocess.run(
    [
      sys.executable,
      "-X",
      "importtime",
      "-m",
      "vespo_jax.train",
      f"--config={DEBUG}",
      "--workdir=w",
      "--config.objective.name=nonsense",
    ],
    capture_output=True,
    text=True,
    timeout=100,
    cwd=REPOSITORY,
  )
  lines = done.stderr.splitlines()
  messages = [line for line in lines if not line.startswith("import time:")]
  assert done.returncode == 2
  assert len(messages) == 1 and f"known: {', '.join(objectives.names())}" in messages[0]
  loaded = "\n".join(lines)
  for heavy in ("orbax", "tensorflow_datasets", "matplotlib", "reasoning_gym.factory"):
    assert heavy not in loaded, heavy


CHECK = """
import json, sys, types
import vespo_jax
launch = types.ModuleType("vespo_jax.launch")
launch.train = lambda config, workdir, stop: {"stop_reason": "checked", "updates": 0}
sys.modules["vespo_jax.launch"] = vespo_jax.launch = launch
from vespo_jax import train
code = train.main(sys.argv)
from jax._src import xla_bridge
print(json.dumps([code, xla_bridge.backends_are_initialized(), sorted(sys.modules)]))
"""


def test_the_whole_check_starts_no_backend_and_loads_nothing_heavy():
  arguments = [f"--config={DEBUG}", "--workdir=w", "--config.objective.name=bapo"]
  done = subprocess.run(
    [sys.executable, "-c", CHECK, *arguments],
    capture_output=True,
    text=True,
    timeout=100,
    cwd=REPOSITORY,
  )
  assert done.returncode == 0, done.stderr
  code, started, modules = json.loads(done.stdout.splitlines()[-1])
  assert code == 75 and not started and "reasoning_gym.factory" in modules
  for heavy in ("orbax", "matplotlib", "pyarrow", "tensorflow_datasets", "vespo_jax.learner"):
    assert heavy not in modules, heavy


@pytest.mark.parametrize("before", slow_but([None, "elsewhere"], None))
def test_compiled_programs_are_kept_where_the_config_says_unless_the_environment_does(
  before, tmp_path
):
  """The programs of the process itself, and by its environment those of its children."""
  program = """
import os, sys, jax
from vespo_jax import rundirs
rundirs.keep_programs(sys.argv[1])
jax.block_until_ready(jax.jit(lambda x: jax.numpy.sin(x @ x))(jax.numpy.ones((9, 9))))
print(os.environ["JAX_COMPILATION_CACHE_DIR"])
"""
  env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
  env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
  if before:
    env["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / before)
  done = subprocess.run(
    [sys.executable, "-c", program, str(tmp_path / "configured")],
    env=env,
    capture_output=True,
    text=True,
    check=True,
  )
  used = tmp_path / (before or "configured")
  assert done.stdout.strip() == str(used)
  assert list(used.iterdir()) and [used] == list(tmp_path.iterdir())
