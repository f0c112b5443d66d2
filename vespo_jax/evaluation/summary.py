"""What an evaluation found: plain values for a file, and a table for people."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vespo_jax.evaluation import bootstrap
from vespo_jax.evaluation.accuracy import Evaluation, shown_ks, summarise
from vespo_jax.evaluation.estimators import maj_at_k, pass_at_k
from vespo_jax.evaluation.records import Evaluated


def curves(evaluated: Evaluated) -> np.ndarray:
  """avg@n, then pass@k and maj@k for k = 1 .. n, of every seed and problem: [S, P, 1 + 2 n]."""
  rewards_SPR = evaluated.rewards_SPR
  values = []
  for rewards_PR, records in zip(rewards_SPR, evaluated.records, strict=True):
    answers = [[response.answer for response in record.responses] for record in records]
    correct_PR = rewards_PR == 1
    mean_P1 = rewards_PR.mean(axis=1, keepdims=True)
    values.append([mean_P1, pass_at_k(correct_PR), maj_at_k(correct_PR, answers)])
  return np.array([np.concatenate(columns, axis=1) for columns in values])


def summary(evaluated: Evaluated) -> dict[str, Any]:
  """What `--json` prints.

  `accuracy`, `low` and `high` are those of `summarise` over all samples; `avg_at_k`, `pass_at_k`
  and `maj_at_k` have bootstrap intervals (`bootstrap.intervals`) and are of k samples under one
  seed, the mean over seeds. Of a task without answers to vote for there is no `maj_at_k`.
  """
  about = evaluated.about
  values_SPK = curves(evaluated)
  means_K = values_SPK.mean(axis=(0, 1))
  ends_2K = bootstrap.intervals(values_SPK)
  triples = [
    {"value": float(mean), "low": float(low), "high": float(high)}
    for mean, low, high in zip(means_K, *ends_2K, strict=True)
  ]
  n = about.samples
  pooled_PR = np.concatenate(list(evaluated.rewards_SPR), axis=1)
  responses = [r for of in evaluated.records for record in of for r in record.responses]
  statuses = collections.Counter(response.status for response in responses)
  by_seed = values_SPK[:, :, 0].mean(axis=1)
  plain = summarise(pooled_PR).to_dict()
  del plain["pass_at_k"]  # over all seeds; below it is of one
  curves_at_k = {"pass_at_k": {str(k): triples[k] for k in range(1, n + 1)}}
  if has_votes(evaluated):
    curves_at_k["maj_at_k"] = {str(k): triples[n + k] for k in range(1, n + 1)}
  return {
    **dataclasses.asdict(about),
    **plain,
    "avg_at_k": {"k": n, **triples[0]},
    **curves_at_k,
    "avg_by_seed": {str(seed): float(x) for seed, x in zip(about.seeds, by_seed, strict=True)},
    "statuses": dict(sorted(statuses.items())),
    "truncated_fraction": float(np.mean([r.finish == "length" for r in responses])),
    "tokens_mean": float(np.mean([r.tokens for r in responses])),
    "bootstrap": {"replicates": bootstrap.REPLICATES, "level": bootstrap.LEVEL},
  }


def has_votes(evaluated: Evaluated) -> bool:
  """Whether any response has an answer that can be voted for."""
  records = [record for of in evaluated.records for record in of]
  return any(r.answer is not None for record in records for r in record.responses)


def table(found: Mapping[str, Any]) -> str:
  """A summary for people: accuracy, avg, pass and maj at some k, and how the responses ended."""
  accuracy = Evaluation(**{name: found[name] for name in _names(Evaluation) if name in found})
  k = found["avg_at_k"]["k"]
  shown_curves = [name for name in ("pass_at_k", "maj_at_k") if name in found]
  rows = [["k", *(name.replace("_at_", "@") for name in shown_curves)]]
  for shown in map(str, shown_ks(k)):
    rows.append([shown, *(_interval(found[name][shown]) for name in shown_curves)])
  several = len(found["seeds"]) > 1
  reward = found["reward"] and f", scored by {found['reward']}"
  lines = [
    f"{found['model']} on {found['task']}{reward}",
    f"held-out accuracy: {accuracy}",
    f"bootstrap intervals of 95 % over problems{' and seeds' if several else ''}:",
    f"avg@{k}: {_interval(found['avg_at_k'])}",
  ]
  if several:
    by_seed = found["avg_by_seed"]
    spread = np.std(list(by_seed.values()), ddof=1)
    each = ", ".join(f"seed {seed} {value:.1%}" for seed, value in by_seed.items())
    lines[-1] += f"; {each} (standard deviation {spread:.1%})"
  lines += align(rows) if k > 1 else []
  ends = ", ".join(f"{count} {status}" for status, count in found["statuses"].items())
  lines.append(
    f"responses: {ends}; {found['truncated_fraction']:.1%} cut off at "
    f"{found['max_new_tokens']} tokens, {found['tokens_mean']:.1f} tokens on average"
  )
  return "\n".join(lines)


def align(rows: Sequence[Sequence[str]]) -> list[str]:
  """Rows of texts in columns, two spaces apart."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return [
    "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
    for row in rows
  ]


def _interval(of: Mapping[str, float]) -> str:
  return f"{of['value']:.1%} [{of['low']:.1%}, {of['high']:.1%}]"


def _names(cls: Any) -> list[str]:
  return [field.name for field in dataclasses.fields(cls) if field.name != "pass_at_k"]
