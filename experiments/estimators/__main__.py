"""`python -m experiments.estimators [--preset=cpu] [--out=DIR]`: runs the estimator lab.

Writes `results.jsonl` (a record per setting, objective and aggregation), `table.md` and figures to
DIR. Exit codes: 0 finished; 2 bad usage.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import tqdm

from experiments.estimators import figures, findings, run, sweeps
from experiments.estimators.presets import PRESETS
from experiments.estimators.results import Results


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command line; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m experiments.estimators",
    description="Bias, variance and signal of every objective's gradient estimator.",
  )
  parser.add_argument("--preset", choices=PRESETS, default="cpu", help="the size of the run")
  parser.add_argument("--out", type=Path, default=Path("runs/estimators"), help="where to write")
  arguments = parser.parse_args(argv)
  preset, out = PRESETS[arguments.preset], arguments.out
  try:
    out.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    print(f"error: --out={out}: {error}", file=sys.stderr)
    return 2

  every = run.entries()
  rows = []
  total = len(preset.seeds) * sweeps.count(preset)
  with (
    (out / "results.jsonl").open("w") as file,
    tqdm.tqdm(total=total, desc="estimators", unit="setting") as bar,
  ):
    for setting, records in run.records(preset, every):
      file.writelines(json.dumps(record) + "\n" for record in records)
      file.flush()
      rows += records
      bar.set_postfix_str(f"{setting.sweep} {setting.value}", refresh=False)
      bar.update()
  results = Results(rows)
  figures.draw(results, every, out)
  (out / "table.md").write_text(findings.table(results))
  print(findings.summary(results))
  print(f"records, table and figures: {out}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
