"""`python -m experiments.benchmarks.growth`: how time and memory grow, one size at a time.

Each row is one size of a small workload; the slope between the last two sizes, in powers of the
size, stands in the figure: 1 is proportional. Time is the fastest of three calls after a warm-up,
of rows beyond 4,096 tokens that of one call and its compilation, which is little beside it;
memory is what XLA reserves for the temporaries of the update. For the number of samplers the
quickstart is run: seconds are those of a whole step on the cores that there are. Writes
docs/growth.json, from which one sweep may be replaced, docs/growth.png and docs/growth.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import NullFormatter

from experiments.benchmarks.workload import TINY, Workload
from vespo_jax import metrics, models, sampler
from vespo_jax.models import ModelSpec
from vespo_jax.types import Params

SMALL = Workload(prompts=4, samples=4, micro_batches=4)
REPETITIONS = 3
LONG = 4096  # tokens of a row, beyond which nothing is done twice


@dataclasses.dataclass(frozen=True)
class Sized(Workload):
  """A workload whose model is changed in the fields of `changes`."""

  changes: tuple[tuple[str, int], ...] = ()

  @functools.cached_property
  def policy(self) -> tuple[ModelSpec, Params]:
    """The changed model, with random weights."""
    spec = dataclasses.replace(TINY, **dict(self.changes))
    return spec, models.init(spec, jax.random.key(0))


def _sizes(name: str, size: int) -> Workload:
  """The workload of one point of a sweep."""
  if name == "prompts":
    return dataclasses.replace(SMALL, prompts=size)  # as many micro-batches: each grows
  if name == "response tokens":
    return dataclasses.replace(SMALL, prompts=1, samples=2, micro_batches=1, new_tokens=size)
  if name == "minibatches N":
    return dataclasses.replace(SMALL, prompts=16, minibatches=size, micro_batches=1)
  fields = {name: size}
  if name == "width":  # with heads and MLP in proportion
    fields |= {"heads": size // 32, "kv_heads": size // 64, "mlp_width": 4 * size}
  return Sized(
    **dataclasses.asdict(SMALL),
    changes=tuple((key.replace("vocabulary", "vocab_size"), v) for key, v in fields.items()),
  )


SWEEPS = {
  "prompts": (4, 8, 16, 32, 64),
  "response tokens": (256, 512, 1024, 2048, 4096, 8192, 16384),
  "vocabulary": (512, 2048, 8192, 32768, 131072),
  "width": (64, 128, 256, 512, 1024),
  "layers": (1, 2, 4, 8, 16, 32),
  "minibatches N": (1, 2, 4, 8, 16),
  "samplers": (1, 2, 4, 8),
}
RUN_UPDATES, RUN_WARM_UP = 16, 4
RUN_TIMEOUT_S = 900.0

Row = tuple[int, float, float, float]  # size, update s, update MB, sample s; NaN: not measured


def update_cost(work: Workload) -> tuple[float, float]:
  """Seconds and MB of temporaries of the updates of a step."""
  state, update = work.make_update()
  batch = work.make_batch()
  memory = jax.jit(update).lower(state, batch).compile().memory_analysis()

  def step() -> None:
    nonlocal state
    for _ in range(work.minibatches):
      state, metrics = update(state, batch)
    jax.block_until_ready(metrics)

  return _fastest(step, once=work.new_tokens > LONG), memory.temp_size_in_bytes / 1e6


def sample_cost(work: Workload) -> float:
  """Seconds of sampling."""
  spec, params = work.policy
  prompts = work.make_prompts()
  return _fastest(lambda: sampler.generate(params, spec, prompts, jax.random.key(0), work.settings))


def run_cost(samplers: int) -> tuple[float, float]:
  """Seconds of a step of the quickstart with so many samplers, and of its sampling.

  Raises OSError if the run fails.
  """
  with tempfile.TemporaryDirectory() as folder:
    command = [
      *(sys.executable, "-m", "vespo_jax.train", "--config=configs/quickstart.py"),
      *(f"--workdir={folder}/run", f"--config.sampler.processes={samplers}"),
      *(f"--config.updates={RUN_UPDATES}", "--config.checkpoint.every=0"),
      *("--config.evaluation.problems=4", "--config.evaluation.samples_per_problem=1"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT_S)
    if done.returncode:
      raise OSError(f"the run failed: {done.stderr}")
    rows = metrics.read(Path(folder) / "run" / "metrics.jsonl")[RUN_WARM_UP:]
  seconds = (rows[-1]["wall_time_s"] - rows[0]["wall_time_s"]) / (len(rows) - 1)
  return seconds, statistics.median(row["time/sample_s"] for row in rows)


def measure(name: str, size: int) -> Row:
  """One point of a sweep."""
  if name == "samplers":
    step_s, sample_s = run_cost(size)
    return size, step_s, math.nan, sample_s
  work = _sizes(name, size)
  update_s, update_mb = update_cost(work)
  long = name == "response tokens" and size > 2048  # 16k steps of decoding take minutes
  return size, update_s, update_mb, math.nan if long else sample_cost(work)


def _fastest(call: Callable[[], object], once: bool = False) -> float:
  if not once:
    call()
  seconds = []
  for _ in range(1 if once else REPETITIONS):
    started = time.perf_counter()
    call()
    seconds.append(time.perf_counter() - started)
  return min(seconds)


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
  """d log value / d log size between the last two."""
  return math.log(values[-1] / values[-2]) / math.log(sizes[-1] / sizes[-2])


def main(argv: Sequence[str] | None = None) -> int:
  """Measures every sweep, prints it row by row; after each the figure and the table are written."""
  parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.growth")
  parser.add_argument("--only", choices=SWEEPS, help="one sweep")
  parser.add_argument("--out", type=Path, default=Path("docs"), help="where it is written")
  options = parser.parse_args(argv)
  measured = options.out / "growth.json"
  rows: dict[str, list[Row]] = json.loads(measured.read_text()) if measured.is_file() else {}
  options.out.mkdir(parents=True, exist_ok=True)
  for name in [options.only] if options.only else SWEEPS:
    rows[name] = []
    for size in SWEEPS[name]:
      row = measure(name, size)
      rows[name].append(row)
      print(f"{name} {size}: update {row[1]:.3f} s, {row[2]:.0f} MB, sample {row[3]:.3f} s")
    measured.write_text(json.dumps(rows) + "\n")
    _draw(rows, options.out / "growth.png")
    (options.out / "growth.md").write_text(_table(rows))
  return 0


def _draw(rows: dict[str, list[Row]], path: Path) -> None:
  figure, axes = plt.subplots(2, len(rows), figsize=(3 * len(rows), 5.5), squeeze=False)
  for column, (name, points) in zip(axes.T, rows.items(), strict=True):
    sizes, update_s, update_mb, sample_s = (list(x) for x in zip(*points, strict=True))
    for axis, values, label in (
      (column[0], update_s, "update"),
      (column[0], sample_s, "sample"),
      (column[1], update_mb, "update"),
    ):
      known = [(a, b) for a, b in zip(sizes, values, strict=True) if not math.isnan(b)]
      if len(known) < 2:
        continue
      power = slope(*(list(x) for x in zip(*known, strict=True)))
      axis.loglog(*zip(*known, strict=True), marker="o", label=f"{label} (slope {power:.2f})")
      axis.legend(fontsize=8)
      axis.set_xlabel(name)
      axis.xaxis.set_minor_formatter(NullFormatter())
    column[1].set_visible(bool(column[1].lines))
  axes[0, 0].set_ylabel("seconds")
  axes[1, 0].set_ylabel("MB of temporaries")
  figure.tight_layout()
  figure.savefig(path, dpi=110)
  plt.close(figure)


def _table(rows: dict[str, list[Row]]) -> str:
  lines = [
    "# Growth",
    "",
    "`python -m experiments.benchmarks.growth` (two CPU cores, float32): the reference policy, 4",
    "prompts x 4 samples of 32 + 64 tokens, and one size at a time changed. Seconds of the update",
    "and of sampling, MB of the update's temporaries. For samplers: of a step of the quickstart.",
    "",
    "![growth](growth.png)",
    "",
    "| size | update s | update MB | sample s |",
    "| --- | --- | --- | --- |",
  ]
  for name, points in rows.items():
    for size, update_s, update_mb, sample_s in points:
      cells = [f"{update_s:.3f}", f"{update_mb:.0f}", f"{sample_s:.3f}"]
      cells = ["" if cell == "nan" else cell for cell in cells]
      lines.append(f"| {name} {size:,} | " + " | ".join(cells) + " |")
  return "\n".join([*lines, ""])


if __name__ == "__main__":
  sys.exit(main())
