"""Writing an evaluation's records as they come, so that an interrupted one goes on.

The file has the name `*.partial` until it is whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
from pathlib import Path

from vespo_jax.evaluation.records import FORMAT, About, Record, line, parse, read

PARTIAL = ".partial"


class RecordWriter:
  """Writes the records of one evaluation; as a context manager, it closes the file.

  Args:
    path: the file to be, whose folder is made if missing.
    about: what is evaluated. What an earlier writer left unfinished is kept and gone on with.

  Attributes:
    done: (seed, problem) of the records there are.
    rewards: of their responses.

  Raises:
    ValueError: if what is there is of another evaluation, or another process is writing it.
  """

  def __init__(self, path: Path, about: About):
    path.parent.mkdir(parents=True, exist_ok=True)
    self._path, self._partial = path, path.with_name(path.name + PARTIAL)
    with contextlib.ExitStack() as stack:
      flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
      self._file = stack.enter_context(os.fdopen(os.open(self._partial, flags, 0o666), "a+b"))
      try:
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel gives it back
      except BlockingIOError as error:
        raise ValueError(f"{self._partial} is being written by another process") from error
      self.done: set[tuple[int, int]] = set()
      self.rewards: list[float] = []
      self._continue(about)
      stack.pop_all()

  def _continue(self, about: About) -> None:
    self._file.seek(0)
    data = self._file.read()
    whole = data[: data.rfind(b"\n") + 1]
    if not whole:
      self._file.truncate(0)
      self._write(line({"format": FORMAT, "about": dataclasses.asdict(about)}))
      return
    found, records = parse(whole, self._partial)
    wanted = json.loads(line(about))  # JSON has no tuples
    if json.loads(line(dataclasses.replace(found, model=about.model))) != wanted:
      raise ValueError(
        f"{self._partial} holds another evaluation; remove it, or give another --out"
      )
    self._file.truncate(len(whole))
    for record in records:
      self._count(record)

  def write(self, record: Record) -> None:
    """Appends a record; it is there once its newline is."""
    self._write(line(record))
    self._count(record)

  def finish(self) -> None:
    """Gives the file its name. Raises ValueError if it is not whole."""
    os.fsync(self._file.fileno())
    read(self._partial)
    os.replace(self._partial, self._path)

  def _count(self, record: Record) -> None:
    self.done.add((record.seed, record.problem))
    self.rewards += [response.reward for response in record.responses]

  def _write(self, data: bytes) -> None:
    self._file.write(data)
    self._file.flush()

  def __enter__(self) -> RecordWriter:
    return self

  def __exit__(self, *exc_info: object) -> None:
    self._file.close()
