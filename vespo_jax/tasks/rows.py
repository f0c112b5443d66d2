"""Rows of a dataset's files, as publishers ship them: Parquet, JSON Lines, or a JSON array.

A file that is not what its name says is an error that names the file and the row. Nothing is
guessed, and a file is read piece by piece, so that its size does not matter.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".json", ".json.gz")
MAX_LINE_BYTES = 64 << 20
MAX_JSON_BYTES = 256 << 20  # of a JSON array, which is parsed whole
_BATCH = 64  # rows of Parquet that are Python objects at a time
_LFS = b"version https://git-lfs"

Row = dict[str, Any]


def read(path: Path, root: str = "") -> Iterator[tuple[str, Row]]:
  """The rows of a file, each with where it stands: "FILE, line 3" or "FILE, row 3", from 1 on.

  Args:
    path: with one of `SUFFIXES`.
    root: for a JSON object, the name of its member that holds the rows: a list, or an object of
      which the values are the rows.

  Raises:
    ValueError: if the file is damaged, not UTF-8, has a line that is too long or is no JSON object,
      or cannot be opened.
  """
  reader, unit = (_parquet, "row") if path.suffix == ".parquet" else (_lines, "line")
  if unit == "line" and (root or _is_array(path)):
    reader, unit = lambda path: _array(path, root), "row"
  number = 0
  rows = reader(path)
  while True:
    try:
      row = next(rows)
    except StopIteration:
      return
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
      place = f"{path}, {unit} {number + 1}" if number or unit == "line" else str(path)
      reason = " ".join(str(error).split()) or type(error).__name__
      raise ValueError(f"{place}: {reason:.300}") from error
    number += 1
    if row is not None:
      yield f"{path}, {unit} {number}", row


def count(path: Path) -> int | None:
  """The number of rows, where a file says so at its end, else None."""
  import pyarrow as pa
  import pyarrow.parquet as pq

  try:
    return pq.read_metadata(path).num_rows if path.suffix == ".parquet" else None
  except (OSError, pa.ArrowException):
    return None  # reading it says why


def _open(path: Path) -> IO[bytes]:
  file = path.open("rb")
  if file.read(len(_LFS)) == _LFS:
    raise ValueError("this is a pointer of Git LFS, not the file itself; `git lfs pull` gets that")
  file.seek(0)
  return io.BufferedReader(gzip.GzipFile(fileobj=file)) if path.suffix == ".gz" else file


def _is_array(path: Path) -> bool:
  """Whether a file begins with a bracket; one that cannot be read does not."""
  try:
    with _open(path) as file:
      return file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["
  except (OSError, EOFError, ValueError, zlib.error):
    return False


def _lines(path: Path) -> Iterator[Row | None]:
  """One row a line, None for a blank one."""
  with _open(path) as file:
    encoding = "utf-8-sig"  # the first line may begin with a mark
    while line := file.readline(MAX_LINE_BYTES + 1):
      if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"the line is longer than {MAX_LINE_BYTES >> 20} MiB")
      text = _decoded(line, encoding)
      encoding = "utf-8"
      try:
        yield _object(json.loads(text)) if text.strip() else None
      except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at column {error.colno}") from error


def _array(path: Path, root: str) -> Iterator[Row]:
  with _open(path) as file:
    data = file.read(MAX_JSON_BYTES + 1)
  if len(data) > MAX_JSON_BYTES:
    raise ValueError(f"it holds more than {MAX_JSON_BYTES >> 20} MiB; give it as JSON Lines")
  value = json.loads(_decoded(data, "utf-8-sig"))
  if root:
    value = _object(value).get(root)
    value = list(value.values()) if isinstance(value, dict) else value
  if not isinstance(value, list):
    raise ValueError(f"it holds no list of rows{f' under {root!r}' if root else ''}")
  for row in value:
    yield _object(row)


def _parquet(path: Path) -> Iterator[Row]:
  import pyarrow as pa  # here, for only the process that reads needs it
  import pyarrow.parquet as pq

  with _open(path) as file:
    try:
      for batch in pq.ParquetFile(file).iter_batches(_BATCH):
        for i in range(batch.num_rows):
          yield batch.slice(i, 1).to_pylist()[0]
    except pa.ArrowException as error:
      raise ValueError(str(error)) from error


def _decoded(data: bytes, encoding: str) -> str:
  try:
    return data.decode(encoding)
  except UnicodeDecodeError as error:
    raise ValueError(f"it is not UTF-8: {error.reason} at byte {error.start}") from error


def _object(value: Any) -> Row:
  if not isinstance(value, dict):
    raise ValueError(f"a row must be a JSON object, not {json.dumps(value)[:40]}")
  return value
