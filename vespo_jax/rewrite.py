"""Rewrites a task's solutions in the policy's own words, to be learned by `vespo_jax.sft`:

    python -m vespo_jax.rewrite --config=configs/NAME.py --workdir=runs/NAME
    python -m vespo_jax.sft --config=... --workdir=... --config.sft.data=runs/NAME/rewritten.jsonl

See `supervised/cascade.py`. How far the solutions are from the policy, before and after, is in
`result.json`. The same command again goes on. Exit codes: those of `vespo_jax.train`.
"""

from __future__ import annotations

import sys

from vespo_jax import config_supervised
from vespo_jax.command import command


def main(argv: list[str]) -> int:
  """Runs one command line; returns the exit code."""
  return command(argv, "vespo_jax.rewriting", config_supervised.check_rewrite)


if __name__ == "__main__":
  sys.exit(main(sys.argv))
