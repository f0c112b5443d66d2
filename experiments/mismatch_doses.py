"""Engine mismatch by dose: `python -m experiments.mismatch_doses [--preset=cpu] [--out=DIR]`.

Samples with the quickstart's policy as engines of each type and noise hold it, and scores the same
tokens with the float32 engine, which takes them one by one through the same programs: what differs
is the dose alone, and without a dose nothing does. One row has the learner's own log-probs of the
float32 engine's tokens instead: what another order of the same sums does.

Writes `mismatch_doses.md`, with the table that it prints, and `mismatch_doses.png` to DIR;
`--out=docs` regenerates what the documentation shows. Exit codes: 0 finished; 2 bad usage.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
import tqdm
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from configs import quickstart
from vespo_jax import config_tasks, diagnostics, models, parts, sampler
from vespo_jax.learner import gradient
from vespo_jax.learner.batching import make_batch
from vespo_jax.models import ModelSpec
from vespo_jax.report.curves import BLUE, GREY, ORANGE, PURPLE
from vespo_jax.report.drawing import STYLE
from vespo_jax.sampler import Settings
from vespo_jax.sampler.weights import prepare
from vespo_jax.tasks import Example
from vespo_jax.types import Params, Rollout, TokenIds

PRESETS = {"smoke": 4, "cpu": 160}  # prompts
BATCH = 32  # prompts sampled at a time, as in the quickstart
TOKEN = {  # what is shown of each token and of each sequence, and the metrics it is
  "mean": "mismatch/abs_log_ratio_mean",
  "95%": "mismatch/abs_log_ratio_p95",
  "max": "mismatch/abs_log_ratio_max",
}
SEQUENCE = {"mean": "abs_log_w_mean", "max": "abs_log_w_max"}
BANDS = {
  "outside 0.8 to 1.25": "mismatch/outside_0.8_1.25",
  "outside 0.5 to 2": "mismatch/outside_0.5_2",
}
COLOURS = {"mean": BLUE, "95%": PURPLE, "max": ORANGE}
PAGE = """# Engine mismatch in known doses

```
python -m experiments.mismatch_doses --out=docs
```

{sequences} responses ({tokens:.0f} tokens) of the quickstart's policy, sampled by an engine with
each dose and scored by the float32 engine, token by token through the same programs
(`sampler.score`). The float32 engine against itself is zero to the last bit. In the row `learner`
the update's forward pass scores the tokens of the float32 engine: the same function, summed in
another order. `noise` is `sampler.weight_noise`, in units of each tensor's root mean square. The
policy's weights are stored as bfloat16, so the row `bfloat16` shows the rounding of its activations
alone.

Sizes of the log ratio of each token and of log W of each sequence, in nats, and the fraction of
token ratios outside each band:

{table}

![by dose](mismatch_doses.png)
"""

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Dose:
  """How the engine that samples holds its weights, and whether the learner scores its tokens."""

  name: str
  dtype: str = "float32"
  noise: float = 0.0
  learner: bool = False


DOSES = (
  Dose("float32"),
  Dose("learner", learner=True),
  *(Dose(f"noise {noise:g}", noise=noise) for noise in (1e-4, 1e-3, 1e-2, 1e-1)),
  Dose("bfloat16", "bfloat16"),
  Dose("int8", "int8"),
  Dose("int8, noise 0.01", "int8", 1e-2),
)

_learner = jax.jit(gradient.score, static_argnums=(1, 3))
_metrics = jax.jit(diagnostics.mismatch_metrics)


def quickstart_policy(prompts: int) -> tuple[ModelSpec, Params, list[list[int]], Settings]:
  """The policy that the quickstart starts from, that many of its prompts, and how it samples."""
  config = quickstart.get_config()
  spec, params, tokenizer = models.load(config.policy.path)
  task = config_tasks.make_task(config)
  examples = (Example(0, *entry) for entry in task.generate(config.task.seed, prompts))
  ids = [tokenizer.encode_prompt(task.prompt(example)) for example in examples]
  return spec, params, ids, parts.sampler_settings(config, tokenizer)


def measure(
  spec: ModelSpec, params: Params, prompts: Sequence[TokenIds], settings: Settings, dose: Dose
) -> Row:
  """A row of the table: the metrics of `diagnostics.mismatch_metrics`, and those of log W."""
  held = prepare(params, 0, dose.dtype, dose.noise)
  log_ratios = []
  for start in range(0, len(prompts), BATCH):
    some = prompts[start : start + BATCH]
    groups = range(start, start + len(some))
    key = jax.random.key(0)
    sampled = sampler.generate(held, spec, some, key, settings, group_ids=groups)
    policy = _by_the_learner if dose.learner else _by_the_engine
    log_ratios += [
      logprobs - rollout.behaviour_logprobs
      for logprobs, rollout in zip(policy(params, spec, sampled, settings), sampled, strict=True)
    ]
  lengths_B = np.array([len(x) for x in log_ratios])
  mask_BT = np.arange(settings.max_new_tokens) < lengths_B[:, None]
  log_ratio_BT = np.zeros(mask_BT.shape, np.float32)
  log_ratio_BT[mask_BT] = np.concatenate(log_ratios)
  sizes_B = np.abs(log_ratio_BT.sum(axis=1))
  return {
    "dose": dose.name,
    "sequences": len(sizes_B),
    "abs_log_w_mean": float(sizes_B.mean()),
    "abs_log_w_max": float(sizes_B.max()),
    **{name: float(value) for name, value in _metrics(log_ratio_BT, mask_BT).items()},
  }


def _by_the_engine(
  params: Params, spec: ModelSpec, rollouts: list[Rollout], settings: Settings
) -> list[np.ndarray]:
  return [x.behaviour_logprobs for x in sampler.score(params, spec, rollouts, settings)]


def _by_the_learner(
  params: Params, spec: ModelSpec, rollouts: list[Rollout], settings: Settings
) -> list[np.ndarray]:
  R, T = settings.samples_per_prompt, settings.max_new_tokens
  batch, _ = make_batch(rollouts, R, T, version=0)
  as_sampled = gradient.LossSettings(temperature=settings.temperature)
  logprobs_PRT, _ = _learner(params, spec, batch, as_sampled)
  logprobs_BT = np.asarray(logprobs_PRT).reshape(-1, T)
  return [row[: len(x.response_ids)] for row, x in zip(logprobs_BT, rollouts, strict=True)]


def table(rows: Sequence[Row]) -> str:
  """The rows as Markdown; a 0 is exact."""
  columns = {f"log ratio: {name}": key for name, key in TOKEN.items()}
  columns |= {f"log W: {name}": key for name, key in SEQUENCE.items()} | BANDS
  lines = [["dose", *columns], ["---", *["---:"] * len(columns)]]
  for row in rows:
    values = [row[key] for key in columns.values()]
    lines.append([row["dose"], *(f"{value:.1e}" if value else "0" for value in values)])
  return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def figure(rows: Sequence[Row]) -> Figure:
  """Sizes per token and per sequence, a line for each dose."""
  with matplotlib.rc_context(STYLE | {"axes.grid.axis": "both"}):
    canvas = Figure(figsize=(8.6, 3.2))
    left, right = canvas.subplots(1, 2, sharey=True)
    _draw(left, rows, TOKEN)
    _draw(right, rows, SEQUENCE)
    for _, high in diagnostics.RATIO_BANDS:
      left.axvline(np.log(high), color=GREY, linewidth=0.8, linestyle=":")
      left.text(np.log(high), -0.6, f"{high:g}", fontsize=7, color=GREY, ha="center")
    left.set_title("|log ratio| of tokens")
    right.set_title("|log W| of sequences")
    right.legend(*left.get_legend_handles_labels(), loc="upper right")
  return canvas


def _draw(axes: Axes, rows: Sequence[Row], columns: Mapping[str, str]) -> None:
  for y, row in enumerate(rows):
    values = [row[key] for key in columns.values()]
    if any(values):
      axes.plot([min(values), max(values)], [y, y], color="#d3d7dd", linewidth=1.5)
    else:
      where = axes.get_yaxis_transform()  # of the axes across, of the doses down
      axes.text(0.02, y, "exactly 0", transform=where, va="bottom", fontsize=8, color=GREY)
  for name, key in columns.items():
    shown = {y: row[key] for y, row in enumerate(rows) if row[key]}
    axes.scatter(list(shown.values()), list(shown), s=22, color=COLOURS[name], zorder=3, label=name)
  axes.set_xscale("log")
  axes.set_yticks(range(len(rows)), [row["dose"] for row in rows])
  axes.set_ylim(len(rows) - 0.5, -0.5)
  axes.set_xlabel("nats")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command line; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m experiments.mismatch_doses", description="Engine mismatch in known doses."
  )
  parser.add_argument("--preset", choices=PRESETS, default="cpu", help="the size of the run")
  parser.add_argument("--out", type=Path, default=Path("runs/mismatch"), help="where to write")
  arguments = parser.parse_args(argv)
  try:
    arguments.out.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    print(f"error: --out={arguments.out}: {error}", file=sys.stderr)
    return 2
  one = functools.partial(measure, *quickstart_policy(PRESETS[arguments.preset]))
  rows = [one(dose) for dose in tqdm.tqdm(DOSES, desc="mismatch", unit="dose")]
  page = PAGE.format(
    sequences=rows[0]["sequences"], tokens=rows[0]["mismatch/tokens"], table=table(rows)
  )
  (arguments.out / "mismatch_doses.md").write_text(page)
  figure(rows).savefig(arguments.out / "mismatch_doses.png", pil_kwargs={"optimize": True})
  print(table(rows))
  return 0


if __name__ == "__main__":
  sys.exit(main())
