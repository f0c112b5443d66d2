"""Config files: Python, JSON of a run directory, and what is said of broken ones."""

import importlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import re
from pathlib import Path

import pytest

from vespo_jax import config as config_lib
from vespo_jax import rundirs
from vespo_jax.config import ConfigError
from vespo_jax.config_file import flatten
from vespo_jax.config_rules import RULES

REPOSITORY = Path(__file__).parent.parent
DEBUG = str(REPOSITORY / "configs" / "debug.py")


def parse(*arguments, config=DEBUG):
  return config_lib.parse(["train", f"--config={config}", "--workdir=w", *arguments])


def test_missing_files_and_directories(tmp_path):
  for file, words in (
    ("configs/none.py", "--config='configs/none.py': no such file"),
    ("configs", "--config='configs': no such file"),
    ("README.md", "neither a .py file nor"),
    ("", "no such file"),
  ):
    with pytest.raises(ConfigError, match=words):
      parse(config=file)
  with pytest.raises(ConfigError, match="give one --config"):
    config_lib.parse(["train", "--workdir=w"])
  (tmp_path / "file").touch()
  for workdir, words in (
    ([], "give one --workdir"),
    (["--workdir="], "give one --workdir"),
    (["--workdir"], "'--workdir' has no value"),
    ([f"--workdir={tmp_path}/file"], "file' is not a directory"),
    ([f"--workdir={tmp_path}/file/run"], "file' is not a directory"),
  ):
    with pytest.raises(ConfigError, match=words):
      config_lib.parse(["train", f"--config={DEBUG}", *workdir])


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_workdir_that_cannot_be_made_is_refused(tmp_path):
  tmp_path.chmod(0o500)
  with pytest.raises(ConfigError, match="cannot be written to"):
    config_lib.parse(["train", f"--config={DEBUG}", f"--workdir={tmp_path}/run"])


BASE = "from configs import base\ndef get_config():\n  config = base.get_config()\n"


@pytest.mark.parametrize(
  "source,words",
  [
    ("def get_config():\n  return undefined_name\n", "line 2: NameError: .*undefined_name"),
    ("def get_config(:\n", "line 1: SyntaxError"),
    ("import no_such_module\n", "line 1: ModuleNotFoundError: .*no_such_module"),
    ("raise SystemExit(0)\n", "line 1: SystemExit"),
    ("config = 3\n", "AttributeError: .*get_config"),
    ("def get_config():\n  return {}\n", "must return a ConfigDict, not a dict"),
    ("def get_config(argument):\n  return argument\n", "TypeError: get_config.. missing 1"),
    (f"{BASE}  config.updates = 'many'\n  return config\n", "line 4: TypeError: .*'updates'"),
    (f"{BASE}  config.updates = None\n  return config\n", "updates=None must be an integer"),
    (f"{BASE}  config.batch.promts = 3\n  return config\n", "y': unknown .*mean batch.prompts"),
    (f"{BASE}  del config.batch\n  return config\n", "batch.prompts is missing"),
    (f"{BASE}  config.sampler.stop_strings = (1,)\n  return config\n", "stop_strings=.1,. must be"),
    (f"{BASE}  config.task.options.x = {{1}}\n  return config\n", "task.options={'x': .* must be"),
  ],
)
def test_a_broken_config_file_is_one_message_that_says_where(source, words, tmp_path):
  path = tmp_path / "broken.py"
  path.write_text(source)
  with pytest.raises(ConfigError, match=words) as caught:
    parse(config=str(path))
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  "text,words",
  [
    ("{", "not readable JSON: JSONDecodeError"),
    ("[" * 100_000, "not readable JSON: RecursionError"),
    ("\xff", "not readable JSON: UnicodeDecodeError"),
    ("[]", "does not hold a JSON object"),
    ("{}", "seed is missing"),
  ],
)
def test_a_broken_config_json_is_refused(text, words, tmp_path):
  (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
  with pytest.raises(ConfigError, match=words):
    parse(config=str(tmp_path / "config.json"))


def test_free_options_are_flags_too(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)  # Ray may not be here
  config, _ = parse(
    "--config.task.name=reasoning_gym/chain_sum",
    "--config.task.options.max_terms=3",
    "--config.task.options.answer_format=number",
    "--config.runtime.transport=ray",
    "--config.runtime.ray.resources.sampler=0.5",
    '--config.sampler.stop_strings=["\\n", "."]',
  )
  assert config.task.options.to_dict() == {"max_terms": 3, "answer_format": "number"}
  assert config.runtime.ray.resources.to_dict() == {"sampler": 0.5}
  assert config.sampler.stop_strings == ("\n", ".")


def test_a_config_json_is_the_config_that_was_run_and_takes_overrides(tmp_path):
  flags = ["--config.optimizer.learning_rate=1", '--config.sampler.stop_strings=["x"]']
  config, _ = parse(*flags)
  path = tmp_path / "config.json"
  config_lib.write(config, path)
  again, _ = parse(config=str(path))
  assert again == config and config_lib.read(path) == config
  assert type(again.optimizer.learning_rate) is float and again.sampler.stop_strings == ("x",)
  changed, _ = parse("--config.updates=9", config=str(path))
  assert config_lib.differences(config.to_dict(), changed.to_dict()) == ["updates"]


def test_a_stored_config_has_the_methods_of_now(tmp_path):
  """One that was added since has its defaults, and one that was removed is no matter."""
  config, _ = parse()
  stored = config.to_dict()
  del stored["objective"]["sapo"], stored["advantage"]["gpg"], stored["correction"]["k3_rejection"]
  stored["objective"]["token_is"] = {"cap": 2.0}
  del stored["task"]["max_prompt_tokens"], stored["metrics"]["tensorboard"]  # keys of now
  path = tmp_path / "config.json"
  path.write_text(json.dumps(stored))
  assert parse(config=str(path))[0] == config and config_lib.read(path) == config
  with rundirs.claimed(config, tmp_path, "train"):
    assert json.loads(path.read_text()) == json.loads(json.dumps(config.to_dict()))
  for change, words in (
    ({"name": "token_is"}, "config.json': unknown config key 'objective.token_is.cap'"),
    ({"aggregatoin": ""}, "unknown config key 'objective.aggregatoin'"),
  ):
    path.write_text(json.dumps(stored | {"objective": stored["objective"] | change}))
    with pytest.raises(ConfigError, match=words):
      config_lib.read(path)
  for section in ("objective", "sft"):
    path.write_text(json.dumps({**stored, section: {}}))
    with pytest.raises(ConfigError, match=f"{section}.[a-z]+ is missing"):
      config_lib.read(path)


def test_every_key_has_a_rule_and_a_meaning():
  """The default is of the rule's type and in its range; a comment stands on its line or above."""
  config = importlib.import_module("configs.base").get_config()
  assert set(flatten(config)) == set(RULES)
  for key, value in flatten(config).items():
    assert RULES[key].check(key, value) == value
  lines = (REPOSITORY / "configs" / "base.py").read_text().splitlines()
  for before, line in itertools.pairwise(lines):
    if re.match(r"  config\.[a-z_.0-9]+ = (?!ConfigDict)", line):
      assert "#" in line or before.startswith("  # "), line


def test_a_written_config_reads_back_equal(tmp_path):
  config, _ = parse()
  config_lib.write(config, tmp_path / "config.json")
  assert (
    config_lib.differences(config_lib.read(tmp_path / "config.json").to_dict(), config.to_dict())
    == []
  )
  assert config_lib.differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "d": 2}) == [
    "a.b",
    "c",
    "d",
  ]
