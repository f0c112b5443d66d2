"""From a command line to the values of a config, not checked yet: the file, then its overrides.

A config file is Python and runs as code; a run directory's `config.json` is data.
"""

from __future__ import annotations

import copy
import difflib
import importlib.machinery
import json
import os
import traceback
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from vespo_jax.config_rules import ROOMS, RULES, ConfigError, one_line, shown

Values = dict[str, Any]  # by dotted key

# keys that came when there were runs already, as these ran
ADDED: Values = {"metrics.tensorboard": False, "task.max_prompt_tokens": 0}
USAGE = "--config=FILE, --workdir=DIR and --config.KEY=VALUE"


def read_command(argv: Sequence[str]) -> tuple[Values, Path]:
  """The values and the run directory that a command line names.

  Args:
    argv: `sys.argv`: the program, then `--config=FILE`, `--workdir=DIR` and any number of
      `--config.KEY=VALUE`, in any order; of two for one key the last one counts.

  Raises:
    ConfigError: for another argument, an unknown key, or a file that cannot be read.
  """
  given: dict[str, list[str]] = {"--config": [], "--workdir": []}
  overrides: list[tuple[str, str]] = []
  for argument in argv[1:]:
    flag, equals, value = argument.partition("=")
    if flag not in given and not flag.startswith("--config."):
      raise ConfigError(f"unexpected argument {shown(argument)}; there are {USAGE}")
    if not equals:
      raise ConfigError(f"{shown(argument)} has no value; there are {USAGE}")
    if flag in given:
      given[flag].append(value)
    else:
      overrides.append((flag.removeprefix("--config."), value))
  if len(given["--config"]) != 1:
    raise ConfigError("give one --config=FILE, for instance --config=configs/quickstart.py")
  if len(given["--workdir"]) != 1 or not given["--workdir"][0]:
    raise ConfigError("give one --workdir=DIR, the directory of this run")
  check_keys(key for key, _ in overrides)
  workdir = _workdir(given["--workdir"][0])
  try:
    values = read_file(Path(given["--config"][0]))
  except ConfigError as error:
    raise ConfigError(f"--config={error}") from error
  for key, text in overrides:
    _override(values, key, text)
  return values, workdir


def overridden(argv: Sequence[str]) -> list[str]:
  """The keys that a command line, which `read_command` has read, gives values of its own."""
  flags = [argument.partition("=")[0] for argument in argv[1:]]
  return [flag.removeprefix("--config.") for flag in flags if flag.startswith("--config.")]


def read_file(path: Path) -> Values:
  """The values of a config file, `.py` with a `get_config()` or the `.json` of a run directory,
  whatever methods there were when that was written.

  Raises ConfigError naming the file, the line where that is known, and what is wrong.
  """
  if not os.path.isfile(path):
    raise ConfigError(f"{str(path)!r}: no such file")
  if path.suffix not in (".json", ".py"):
    raise ConfigError(f"{str(path)!r} is neither a .py file nor a run directory's config.json")
  values = _run(path) if path.suffix == ".py" else _with_methods(flatten(_read_json(path)))
  try:
    check_keys(values)
  except ConfigError as error:
    raise ConfigError(f"{str(path)!r}: {error}") from error
  return values


def _with_methods(values: Values) -> Values:
  """A stored config with the keys and methods of now: options that it lacks have their defaults,
  and what it says of a method that there is no more, and that it does not use, is left out."""
  kept = ADDED | {key: value for key, value in values.items() if not _is_of_no_method(key, values)}
  for kind, room in ROOMS.items():
    for name in room.names():
      for option, default in room.defaults(name).items():
        kept.setdefault(f"{kind}.{name}.{option}", default)
  return kept


def _is_of_no_method(key: str, values: Values) -> bool:
  kind, *inside = key.split(".")
  if kind not in ROOMS or len(inside) < 2:
    return False
  return inside[0] not in (*ROOMS[kind].names(), values.get(f"{kind}.name"))


def flatten(config: Mapping[str, Any] | ConfigDict | FrozenConfigDict) -> Values:
  """The values of a nested config by dotted key; free options, such as the task's, stay a dict."""
  nested = (ConfigDict, FrozenConfigDict)
  return _flatten(config.to_dict() if isinstance(config, nested) else config, "")


def _flatten(config: Mapping[str, Any], prefix: str) -> Values:
  flat: Values = {}
  for name, value in config.items():
    key = f"{prefix}{name}"
    section = isinstance(value, Mapping) and key not in RULES
    flat |= _flatten(value, f"{key}.") if section else {key: value}
  return flat


def check_keys(keys: Iterable[str]) -> None:
  """Raises ConfigError for the first key that there is not, with the nearest that there is."""
  for key in keys:
    if key in RULES or _options_of(key):
      continue
    inside = [known for known in RULES if known.startswith(f"{key}.")]
    if inside and key:
      raise ConfigError(f"{key} is a section, not a value; it holds {', '.join(inside[:5])}")
    raise ConfigError(f"unknown config key {shown(key)}; {_hint(key)}")


def _hint(key: str) -> str:
  """What an unknown key may be meant to be: what is in the same section goes before the rest."""
  section, _, name = key.rpartition(".")
  if section in ROOMS and any(name in ROOMS[section].defaults(m) for m in ROOMS[section].names()):
    return f"did you mean {section}.METHOD.{name}, METHOD being what {section}.name says?"
  leaves = {known.rpartition(".")[2]: known for known in RULES}
  inside = {
    known.rpartition(".")[2]: known for known in RULES if known.rpartition(".")[0] == section
  }
  initials = {"".join(word[0] for word in leaf.split("_")): inside[leaf] for leaf in inside}
  close = [initials[name]] if name in initials else []
  for text, names in ((name, inside), (key, {known: known for known in RULES}), (name, leaves)):
    close = close or [names[near] for near in difflib.get_close_matches(text, names, n=1)]
  return f"did you mean {close[0]}?" if close else "configs/base.py lists every key"


def _override(values: Values, key: str, text: str) -> None:
  if key in RULES:
    values[key] = RULES[key].read(text)
    return
  section = _options_of(key)
  options = values.get(section)
  if isinstance(options, dict):  # anything else is refused later
    *outer, last = key.removeprefix(f"{section}.").split(".")
    values[section] = options = copy.deepcopy(options)
    for name in outer:
      options = options.setdefault(name, {})
      if not isinstance(options, dict):
        raise ConfigError(f"{key}: {name} is a value, not a section")
    options[last] = RULES[section].read(text)


def _options_of(key: str) -> str:
  """The section of free options that the key is in, or ""."""
  free = [known for known, rule in RULES.items() if rule.kind is dict]
  return next((known for known in free if key.startswith(f"{known}.") and key != f"{known}."), "")


def _workdir(text: str) -> Path:
  """The run directory, if it is one or can become one."""
  path = Path(text)
  existing = next((place for place in (path, *path.parents) if os.path.lexists(place)), path)
  if not os.path.isdir(existing):
    raise ConfigError(f"--workdir={shown(text)}: {shown(str(existing))} is not a directory")
  if not os.access(existing, os.W_OK | os.X_OK):
    raise ConfigError(f"--workdir={shown(text)}: {shown(str(existing))} cannot be written to")
  return path


def _read_json(path: Path) -> dict[str, Any]:
  try:
    config = json.loads(path.read_bytes())
  except (OSError, ValueError, RecursionError) as error:
    raise ConfigError(
      f"{str(path)!r} is not readable JSON: {type(error).__name__}: {one_line(error)}"
    ) from error
  if not isinstance(config, dict):
    raise ConfigError(f"{str(path)!r} does not hold a JSON object")
  return config


def _run(path: Path) -> Values:
  """What a config file's `get_config()` returns."""
  loader = importlib.machinery.SourceFileLoader("config_file", str(path))
  module = types.ModuleType(loader.name)
  module.__file__ = str(path)
  try:
    loader.exec_module(module)
    config = module.get_config()
    if not isinstance(config, (ConfigDict, FrozenConfigDict)):
      raise TypeError(f"get_config() must return a ConfigDict, not a {type(config).__name__}")
    return flatten(config)
  except (Exception, SystemExit) as error:  # the file is the user's code and may raise anything
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    lines += [error.lineno] if isinstance(error, SyntaxError) else []
    where = f", line {lines[-1]}" if lines else ""
    raise ConfigError(f"{str(path)!r}{where}: {type(error).__name__}: {one_line(error)}") from error
