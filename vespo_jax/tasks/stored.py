"""Tasks whose problems are in files: a published dataset by name, or a user's own file."""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

from vespo_jax.metrics import printable
from vespo_jax.tasks import layouts, prepare, splits, verifiers
from vespo_jax.tasks.base import Example, Score, Task, families
from vespo_jax.tasks.extraction import extract, respond
from vespo_jax.tasks.layouts import QUESTION, Layout
from vespo_jax.tasks.verifiers import exact, numeric

_OPTIONS: dict[str, Any] = {  # of every stored task, with their defaults; "": the layout's own
  "verifier": "",
  "template": "",
  "train_split": "",
  "test_split": "",
  "held_out": 0.1,
  "digest": "",
}
# where an answer stands unless the option `answer_format` says otherwise; programs have none
_FORMATS = {"exact": "text", "numeric": "auto", "math_verify": "boxed"}


@families.register("dataset")
def dataset(dataset: str, options: dict[str, Any]) -> Task:
  """A dataset that was prepared with `python -m vespo_jax.data prepare DATASET`.

  Args:
    dataset: its name, one of `layouts.LAYOUTS`.
    options: `verifier`, its name; `template` of the prompt, with "{question}" in it; `train_split`
      and `test_split`, names of splits; `held_out`, the fraction that is held out where the two are
      the same; `digest`, of the problems to use (default: those that were prepared last).
      Everything else goes to the verifier.

  Raises:
    ValueError: naming the dataset or option that is not known or not accepted.
  """
  return PublishedTask(dataset, options)


@families.register("jsonl:")
def jsonl(dataset: str, options: dict[str, Any]) -> Task:
  """A user's own JSON Lines: `prompt`, `answer`, and as metadata all other columns.

  Args:
    dataset: the path of the file, which is prepared when its problems are first asked for.
    options: those of `dataset`, and `test_path`, a second file with the problems to hold out.

  Raises:
    ValueError: naming the option that is not known or not accepted.
  """
  return FileTask(dataset, options)


class _StoredTask:
  """What both have in common: see `dataset`."""

  train_split: str
  test_split: str
  held_out: float
  digest: str

  def __init__(self, name: str, layout: Layout, options: dict[str, Any], **own: Any):
    self.name, self.options, self.layout = name, dict(options), layout
    known = {**_OPTIONS, **own}
    values = {key: options.get(key, default) for key, default in known.items()}
    for key, value in values.items():
      if not isinstance(value, type(known[key])):
        kind = "number" if key == "held_out" else "text"
        raise ValueError(f"{key}={value!r:.60} must be a {kind}")
    if not 0 < values["held_out"] < 1:
      raise ValueError(f"held_out={values['held_out']} must be between 0 and 1")
    self._template = values["template"] or layout.template
    if QUESTION not in self._template:
      raise ValueError(f"template={self._template!r:.60} must have {QUESTION} in it")
    self.train_split, self.test_split = values["train_split"], values["test_split"]
    self.held_out, self.digest = values["held_out"], values["digest"]
    rest = {key: value for key, value in options.items() if key not in known}
    if not values["verifier"]:
      rest = {**layout.verifier_options, **rest}
    self._verifier = values["verifier"] or layout.verifier
    try:
      self._verify = verifiers.make(self._verifier, **rest)
    except ValueError as error:
      raise ValueError(f"{error}; options of the task itself: {', '.join(known)}") from error
    self._own = {key: values[key] for key in own}
    self._format = rest.get("answer_format", _FORMATS.get(self._verifier, ""))
    if self._format:  # what is compared as text is a `Votable`
      case = {"ignore_case": rest["ignore_case"]} if "ignore_case" in rest else {}
      cut = {"numeric": numeric.vote, "exact": functools.partial(exact.vote, **case)}
      cut = cut.get(self._verifier, extract)
      self.answer = lambda response: cut(response, self._format) or None

  def prompt(self, example: Example) -> str:
    """The question in the template."""
    return self._template.replace(QUESTION, example.question)

  def solution(self, example: Example) -> str:
    """The publisher's worked solution, if there is one, and the answer where a verifier looks for
    it; a program is its own, fenced."""
    answer = example.answer
    if self._verifier == "exact":
      return respond(answer, self._format)
    if self._verifier == "code":
      return f"```python\n{answer}\n```" if answer else ""
    worked = json.loads(example.metadata or "{}").get("solution")
    worked = worked if isinstance(worked, str) else ""
    if not answer or ("\\boxed{" in worked and self._format in ("auto", "boxed")):
      return worked or answer
    hashed = self._format in ("auto", "hash")
    end = f"#### {answer}" if hashed else respond(answer, self._format)
    return f"{worked}\n{end}" if worked else end

  def score(self, example: Example, response: str) -> Score:
    """The verifier's verdict."""
    return self._verify(response, example.answer, example.metadata)


class PublishedTask(_StoredTask):
  """See `dataset`."""

  def __init__(self, dataset: str, options: dict[str, Any]):
    if dataset not in {layout.name for layout in layouts.LAYOUTS}:
      raise ValueError(prepare.unknown(dataset))
    super().__init__(f"dataset/{dataset}", layouts.BY_NAME[dataset], options)

  def locate(self, data_dir: Path) -> Path:
    """The dataset that was prepared. Raises ValueError with the command if none was."""
    return prepare.locate(self.layout.name, data_dir, self.digest)

  def check(self, data_dir: Path) -> str:
    """The digest of what `locate` finds. Raises ValueError if it has not the splits, or nothing to
    train on."""
    directory = self.locate(data_dir)
    train, _ = splits.choose(self, list(prepare.Report.load(directory).kept))
    if not train:
      raise ValueError(
        "it has nothing to train on, its publisher ships problems to hold out alone; "
        "task.options.train_split=test trains on a part of them"
      )
    return prepare.digest_in(directory)


class FileTask(_StoredTask):
  """See `jsonl`."""

  def __init__(self, path: str, options: dict[str, Any]):
    super().__init__(f"jsonl:{path}", layouts.JSONL, options, test_path="")
    self._files = [(Path(path), "train")]
    if self._own["test_path"]:
      self._files.append((Path(self._own["test_path"]), "test"))
    stem = self._files[0][0].stem[:40]
    self._directory = "jsonl-" + "".join(c if c.isalnum() else "_" for c in stem)

  def locate(self, data_dir: Path) -> Path:
    """The prepared file, prepared now if need be. Raises ValueError naming file and line."""
    found = prepare.find(self._directory, data_dir, self.check(data_dir))
    if found is None:
      found = prepare.prepare_files(self.layout, self._directory, self._files, data_dir)
      print(printable(str(prepare.Report.load(found))), file=sys.stderr)
    return found

  def check(self, data_dir: Path) -> str:
    """The digest of the files. Raises ValueError if one does not exist or is not called one of JSON
    Lines, or if they are not those of the option `digest`, and these are not prepared."""
    if prepare.find(self._directory, data_dir, self.digest):
      return self.digest
    for path, _ in self._files:
      if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise ValueError(f"{str(path)!r} must end in .jsonl or .jsonl.gz")
      if not os.path.isfile(path):
        raise ValueError(f"{str(path)!r} does not exist")
    digest = prepare.digest_of(self.layout, prepare.sources_of(self._files))
    if self.digest not in ("", digest):
      raise ValueError(f"it has changed: its digest is {digest}, not {self.digest!r:.40}")
    return digest
