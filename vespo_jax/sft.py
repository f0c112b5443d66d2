"""Supervised fine-tuning: `python -m vespo_jax.sft --config=configs/NAME.py --workdir=runs/NAME`.

What is learned is `sft.data`, or the solutions of the task. The trained policy is in
`runs/NAME/model/`, and `policy.path=runs/NAME` starts reinforcement learning from it. The same
command again resumes. Exit codes: those of `vespo_jax.train`.
"""

from __future__ import annotations

import sys

from vespo_jax import config_supervised
from vespo_jax.command import command


def main(argv: list[str]) -> int:
  """Runs one command line; returns the exit code."""
  return command(argv, "vespo_jax.fine_tuning", config_supervised.check_sft)


if __name__ == "__main__":
  sys.exit(main(sys.argv))
