"""Says in words and tables what the records show. Every statement is computed from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from experiments.estimators.results import Point, Results

METRICS = ("signal", "mse")
BETTER = {"signal": 1, "cosine": 1, "mse": -1}  # the sign of better
NAMED = ("sequence_is", "grpo", "gspo", "reinforce")  # what VESPO is held against by name
ESS_BANDS = ((0.9, 1.0), (0.5, 0.9), (0.1, 0.5), (0.0, 0.1))
_ROUNDING = 1e-9  # of an ESS of 1
_ERRORS = 3  # standard errors that Monte Carlo numbers must differ by to count as different
_EXACT = 1e-3  # relative difference below which exact numbers count as equal
_MANY = 5  # methods named before the rest is counted

GUIDE = """\
One policy, all of whose responses are enumerated; g is its exact policy gradient, g^ an objective's
estimate from a batch of n responses of the behaviour policy. **signal** = the part of the squared
step that is along g, with its sign: 1 - signal is the least relative mean squared error any
learning rate can reach, and below 0 the step leads away from g. **mse** = E|g^ - g|^2 / |g|^2, and
**cosine** is that of E g^ to g. Advantages are R - E_mu[R] unless said otherwise. Numbers are exact
sums, means over seeds; those marked ~ are Monte Carlo.

Read with care: an objective is meant to improve a policy, not to estimate g; a trust region that
holds a policy back near its behaviour policy shows here as a cosine below 0. Clip widths are the
published ones, and those of length-normalised ratios were made for responses of thousands of
tokens.
"""


def summary(results: Results) -> str:
  """What wins where, as plain lines: the verdict on VESPO, then point by point."""
  lines = ["Where VESPO wins, and where it does not (common aggregation, means over seeds)", ""]
  lines += _verdict(results)
  for rival in [name for name in NAMED if name in results.objectives]:
    lines += ["", f"VESPO against {rival}"]
    for metric in METRICS:
      lines += [f"  {metric}", _by_ess(results, rival, metric), _where(results, rival, metric)]
  for metric in METRICS:
    lines += ["", f"best {metric} at each point"]
    lines += [text for sweep in results.sweeps for text in _winners(results, sweep, metric)]
  lines += ["", "steps away from the true gradient (mean signal below 0)"]
  lines += _against_gradient(results)
  return "\n".join(lines)


def _verdict(results: Results) -> list[str]:
  """VESPO's record over all points where methods differ, and everyone's mean rank."""
  lines = []
  for metric in METRICS:
    points = [p for p in results.points if len(_best(results, p, metric)) < len(results.objectives)]
    first = [p for p in points if "vespo" in _best(results, p, metric)]
    where = ", ".join(f"{sweep} {value}" for sweep, value in first) or "none"
    lines.append(
      f"{metric}: VESPO is among the best at {len(first)} of {len(points)} points: {where}"
    )
    ranks = {
      name: float(np.mean([_rank(results, point, metric, name) for point in points]))
      for name in results.objectives
    }
    order = sorted(ranks, key=ranks.__getitem__)
    lines.append(f"  mean rank: {', '.join(f'{name} {ranks[name]:.1f}' for name in order)}")
  return lines


def table(results: Results) -> str:
  """The Markdown page: how to read it, the summary, the settings and all numbers."""
  parts = ["# Gradient estimators against the exact policy gradient", GUIDE]
  parts += ["## What wins where", "```\n" + summary(results) + "\n```"]
  parts += ["## Settings", _settings(results)]
  sections = [
    ("Common aggregation: sum over tokens, mean over sequences", "common", "expected"),
    ("Each objective's own aggregation", "own", "expected"),
    ("Each objective's own aggregation, group-normalised advantages", "own", "group"),
  ]
  for title, which, advantage in sections:
    parts.append(f"## {title}")
    # an own aggregation sets the scale too, which a learning rate absorbs
    for metric in ("signal", "cosine", "mse") if which == "common" else ("signal", "cosine"):
      for sweep in results.sweeps_of(advantage):
        parts += [f"### {metric}, {sweep}", _numbers(results, sweep, metric, which, advantage)]
  return "\n\n".join(parts) + "\n"


def _margin(results: Results, point: Point, metric: str, name: str, other: str) -> float:
  """How much better than `other` a method is, in the metric, beyond what noise may explain."""
  means = [results.mean(point, x, metric, "common") for x in (name, other)]
  errors = [results.error(point, x, metric, "common") for x in (name, other)]
  difference = BETTER[metric] * (means[0] - means[1])
  tolerance = _ERRORS * np.hypot(*errors) + _EXACT * max(np.abs(means))
  return float(np.sign(difference) * max(abs(difference) - tolerance, 0.0))


def _best(results: Results, point: Point, metric: str) -> list[str]:
  """The methods no other is better than, those known exactly first, then by their means."""
  ranked = _ranked(results, point, metric)
  best = [name for name in ranked if _margin(results, point, metric, ranked[0], name) == 0]
  return sorted(best, key=lambda name: results.error(point, name, metric, "common") > 0)


def _ranked(results: Results, point: Point, metric: str) -> list[str]:
  means = {x: results.mean(point, x, metric, "common") for x in results.objectives}
  return sorted(means, key=lambda name: -BETTER[metric] * means[name])


def _rank(results: Results, point: Point, metric: str, name: str) -> int:
  """1 + how many are better; equals share a rank."""
  margins = [_margin(results, point, metric, other, name) for other in results.objectives]
  return 1 + sum(margin > 0 for margin in margins)


def _winners(results: Results, sweep: str, metric: str) -> list[str]:
  lines = []
  for value in results.values(sweep):
    point = (sweep, value)
    best, count = _best(results, point, metric), len(results.objectives)
    ess = results.mean(point, best[0], "ess_fraction", "common")
    mean = results.mean(point, best[0], metric, "common")
    text = f"all equal ({mean:.3f})"
    if len(best) < count:
      rank = _rank(results, point, metric, "vespo")
      own = results.mean(point, "vespo", metric, "common")
      text = f"{mean:.3f} by {_names(best)}; VESPO {own:.3f}, rank {rank} of {count}"
    lines.append(f"  {sweep} {value} (ESS {ess:.1%}): {text}")
  return lines


def _where(results: Results, rival: str, metric: str) -> str:
  """The values at which VESPO is better and worse than a rival, with the seeds that agree where not
  all do."""
  texts = []
  for sweep in results.sweeps:
    better, worse = [], []
    for point in [(sweep, value) for value in results.values(sweep)]:
      margin = _margin(results, point, metric, "vespo", rival)
      own, other = (results.per_seed(point, x, metric, "common") for x in ("vespo", rival))
      agree = int(np.sum(np.sign(BETTER[metric] * (own - other)) == np.sign(margin)))
      seeds = "" if agree == len(own) else f" ({agree} of {len(own)} seeds)"
      if margin != 0:
        (better if margin > 0 else worse).append(f"{point[1]}{seeds}")
    text = f"better at {', '.join(better) or 'none'}, worse at {', '.join(worse) or 'none'}"
    texts.append(f"    {sweep}: {text}")
  return "\n".join(texts)


def _by_ess(results: Results, rival: str, metric: str) -> str:
  """How often VESPO is better than a rival, by effective sample size."""
  texts = []
  for low, high in ESS_BANDS:
    esses = {p: results.mean(p, rival, "ess_fraction", "common") for p in results.points}
    margins = [
      _margin(results, point, metric, "vespo", rival)
      for point, ess in esses.items()
      if low < ess - _ROUNDING <= high
    ]
    won, lost = sum(m > 0 for m in margins), sum(m < 0 for m in margins)
    if margins:
      texts.append(f"{low:.0%}-{high:.0%}: {won} better, {lost} worse of {len(margins)}")
  return f"    by ESS: {'; '.join(texts)}"


def _against_gradient(results: Results) -> list[str]:
  """Who steps away from the true gradient, and where."""
  lines = []
  for sweep in results.sweeps:
    where = {
      str(value): [
        name
        for name in results.objectives
        if results.mean((sweep, value), name, "signal", "common")
        < -_ERRORS * results.error((sweep, value), name, "signal", "common") - _EXACT
      ]
      for value in results.values(sweep)
    }
    texts = [f"{value}: {_names(names, 99)}" for value, names in where.items() if names]
    lines.append(f"  {sweep}: {'; '.join(texts) or 'none'}")
  return lines


def _names(names: Sequence[str], shown: int = _MANY) -> str:
  rest = len(names) - shown
  return ", ".join(names[:shown]) + (f" and {rest} more" if rest > 0 else "")


def _settings(results: Results) -> str:
  keys = ("ess_fraction", "log_w_std", "kl_per_token", "bound_mass", "reward", "length")
  lines = [_row(["sweep", "value", *keys]), _row(["---"] * (2 + len(keys)))]
  for sweep in results.sweeps:
    for value in results.values(sweep):
      means = [results.mean((sweep, value), results.objectives[0], key, "common") for key in keys]
      lines.append(_row([sweep, str(value), *(f"{mean:.4g}" for mean in means)]))
  return "\n".join(lines)


def _numbers(results: Results, sweep: str, metric: str, table: str, advantage: str) -> str:
  """Methods by mean over the sweep, best first; the best mean of each column is bold."""
  values = results.values(sweep)
  lines_O = {x: results.line(sweep, x, metric, table, advantage) for x in results.objectives}
  order = sorted(lines_O, key=lambda name: -BETTER[metric] * lines_O[name].mean())
  best = (np.max if BETTER[metric] > 0 else np.min)(list(lines_O.values()), axis=0)
  lines = [_row(["objective", *map(str, values)]), _row(["---"] + ["---:"] * len(values))]
  for name in order:
    sampled = any(results.error((sweep, v), name, metric, table, advantage) for v in values)
    cells = [
      f"**{x:.3f}**" if abs(x - b) <= _EXACT * abs(b) else f"{x:.3f}"
      for x, b in zip(lines_O[name], best, strict=True)
    ]
    lines.append(_row([name + (" ~" if sampled else ""), *cells]))
  return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
  return f"| {' | '.join(cells)} |"
