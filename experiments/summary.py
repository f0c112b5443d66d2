"""One page of everything that has been run: `python -m experiments.summary`.

Writes docs/experiments/README.md from the committed results alone; runs nothing.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from experiments.suite import page, statistics
from experiments.suite import results as results_lib
from experiments.suite.cli import FIGURES
from experiments.suite.experiment import Experiment

NAMES = (
  *("regime", "staleness", "tuned", "baselines", "asynchronous", "mismatch", "length_norm"),
  *("asymmetry", "kernel_grid", "dense_vs_moe", "code", "frontier", "combination", "per_nat"),
)
HEAD = """\
# Experiments

Figures and tables of the paper at a scale that two CPU cores can run. Each is one command,
`python -m experiments.NAME`, which runs what is missing from `experiments/results/NAME.jsonl`, one
line a run, and draws what is there. Every run starts from the same bytes and asks the same prompts
in the same order; hyper-parameters are the published ones. Figures are means over seeds with 95 %
intervals (Student's t); p is of the paired t-test over seeds. A claim is *reproduced* or
*contradicted* if p < 0.05, and otherwise *not seen at this scale*; with fewer than three seeds
there is no verdict. Nothing is selected: how a run ended, its last evaluations, its last rewards
and its best evaluation all stand in the tables.

`python -m experiments.kernels` draws figure 2, `python -m experiments.estimators` holds every
estimator against an exact gradient.

"""


def main() -> int:
  """Writes the page and prints the count of verdicts."""
  parts, verdicts = [HEAD], []
  for name in NAMES:
    experiment: Experiment = importlib.import_module(f"experiments.{name}").EXPERIMENT
    results = results_lib.read(results_lib.RESULTS / f"{name}.jsonl")
    if not results:
      parts.append(f"## {experiment.title}\n\nNot run yet.\n")
      continue
    text = page.markdown(experiment, results)
    verdicts += [v for v in VERDICTS for line in text.splitlines() if line.endswith(f"| {v} |")]
    minutes = sum(result["wall_time_s"] for result in results) / 60
    commits = len({result["commit"] for result in results})
    note = f"{len(results)} runs, {minutes:.0f} core-minutes, {commits} commits."
    parts.append(f"{text}\n{note}\n\n![{name}]({name}.png)\n")
  warning = FIGURES / "early_warning.md"  # `python -m experiments.early_warning` reads all of them
  if warning.is_file():
    parts.append(f"{warning.read_text()}\n![early_warning](early_warning.png)\n")
  FIGURES.mkdir(parents=True, exist_ok=True)
  Path(FIGURES / "README.md").write_text("\n".join(parts))
  for verdict in VERDICTS:
    print(f"{verdict}: {verdicts.count(verdict)}")
  return 0


VERDICTS = (
  *(statistics.REPRODUCED, statistics.NOT_SEEN, statistics.CONTRADICTED, statistics.TOO_FEW),
)

if __name__ == "__main__":
  sys.exit(main())
