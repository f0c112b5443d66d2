"""Trains a policy: `python -m vespo_jax.train --config=configs/NAME.py --workdir=runs/NAME`.

The same command again resumes. Exit codes: 0 finished, 1 a process or the disk failed, 2 bad usage
or config, 3 diverged, 75 preempted (SIGTERM or Ctrl-C; the run is saved, give the same command
again).
"""

from __future__ import annotations

import sys

from vespo_jax.command import command


def main(argv: list[str]) -> int:
  """Runs one command line; returns the exit code."""
  return command(argv, "vespo_jax.launch")


if __name__ == "__main__":
  sys.exit(main(sys.argv))
