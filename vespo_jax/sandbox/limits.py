"""What a program may use, and what one may be told of it."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
  """Of one run of a program.

  Attributes:
    seconds: wall-clock and, about, CPU seconds.
    memory_bytes: of each process's address space, and of the memory of all together.
    processes: processes and threads at a time.
    output_bytes: of standard output; more ends the run. Errors are kept up to the same length.
    file_bytes: of each file, and of all files together where the level has a /tmp of its own.
  """

  seconds: float = 5.0
  memory_bytes: int = 1 << 30
  processes: int = 16
  output_bytes: int = 1 << 20
  file_bytes: int = 64 << 20


# how a run ended: by itself, or because it was stopped
ENDINGS = ("exited", "timeout", "memory", "output")


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How one run went.

  Attributes:
    ending: one of `ENDINGS`.
    exit_code: negative for a signal; of a run that was stopped it says nothing.
    stdout, stderr: as far as they were kept.
    report: what was written to descriptor `REPORT_FD`, at most 4096 characters.
  """

  ending: str
  exit_code: int
  stdout: str
  stderr: str
  report: str


REPORT_FD = 3  # of a program, beside the usual three
REPORT_BYTES = 4096
