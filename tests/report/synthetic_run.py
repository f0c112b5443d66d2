"""A made-up run directory with the shape of a real one, to develop the report against.

`python tests/report/synthetic_run.py runs/synthetic && python -m vespo_jax.report
--workdir=runs/synthetic` shows every figure without training anything.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np

from vespo_jax import metrics

MINIBATCHES = 8
PROMPTS, SAMPLES = 8, 8

CONFIG = {
  "updates": 160,
  "seed": 0,
  "objective": {
    "name": "vespo",
    "vespo": {"k_pos": 2.0, "lambda_pos": 3.0, "k_neg": 3.0, "lambda_neg": 2.0},
    "grpo": {"clip_low": 0.2, "clip_high": 0.28},
  },
  "advantage": {"name": "group_mean"},
  "staleness": {"minibatches": MINIBATCHES},
  "runtime": {"mode": "sync", "transport": "local", "max_staleness": 4},
  "task": {"name": "reasoning_gym/chain_sum", "held_out": 200},
  "policy": {"name": "char-4m"},
  "sampler": {"temperature": 1.0, "max_new_tokens": 64, "dtype": "bfloat16"},
  "optimizer": {"learning_rate": 3e-4, "warmup_updates": 10},
  "batch": {"prompts": PROMPTS, "samples_per_prompt": SAMPLES},
  "mesh": {"data": 1, "fsdp": 1},
}


def write(
  workdir: Path, *, updates: int = 160, result: bool = True, evaluate_every: int = 20
) -> Path:
  """Writes the run directory and returns it; the same arguments give the same bytes."""
  rng = np.random.default_rng(0)
  (workdir / "rollouts").mkdir(parents=True)
  (workdir / "config.json").write_text(json.dumps(CONFIG | {"updates": updates}, indent=2))
  wall_time_s = 9.0
  with metrics.MetricsWriter(workdir / "metrics.jsonl") as writer:
    for step in range(1, updates + 1):
      row = _row(step, updates, rng)
      wall_time_s += row["time/sample_s"] + row["time/update_s"] + row["time/wait_s"]
      if evaluate_every and step % evaluate_every == 0:
        row["evaluation/accuracy"] = row["reward/mean"] + rng.normal(0, 0.01)
      writer.write(row | {"wall_time_s": round(wall_time_s, 3)})
      if (step - 1) % MINIBATCHES == 0:
        lines = _rollouts(step, row["reward/mean"], rng)
        path = workdir / "rollouts" / f"{step:06d}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  if result:
    (workdir / "result.json").write_text(json.dumps(_result(updates, wall_time_s), indent=2))
  return workdir


def _row(step: int, updates: int, rng: np.random.Generator) -> dict:
  done, lag = step / updates, (step - 1) % MINIBATCHES
  learned = 1 / (1 + np.exp(-6 * (done - 0.45)))
  drift = 0.02 + 0.05 * lag
  sample_s = 3.1 + rng.normal(0, 0.2) if lag == 0 else 0.0
  update_s = 0.62 + rng.gamma(2, 0.02)
  length = 21 + 9 * learned + rng.normal(0, 0.7)
  return {
    "step": step,
    "weight_version": step,
    "reward/mean": float(np.clip(0.22 + 0.55 * learned + rng.normal(0, 0.04), 0, 1)),
    "reward/zero_variance_fraction": float(
      np.clip(0.15 + 0.4 * learned + rng.normal(0, 0.1), 0, 1)
    ),
    "entropy/mean": 0.85 * np.exp(-1.6 * done) + 0.12 + rng.normal(0, 0.02),
    "kl/behaviour_policy": drift**2 * 0.4 + abs(rng.normal(0, 4e-4)),
    "weight/log_w_mean": -0.5 * drift**2 * 8 + rng.normal(0, 0.01),
    "weight/log_w_std": drift * 1.8 + abs(rng.normal(0, 0.02)),
    "weight/log_w_min": -drift * 7 - rng.gamma(1.5, 0.5),
    "weight/log_w_max": drift * 4 + rng.gamma(1.2, 0.2),
    "weight/ess_fraction": float(np.clip(1 / (1 + (1.8 * drift) ** 2) - rng.gamma(1, 0.02), 0, 1)),
    "weight/log_w_histogram": np.bincount(rng.binomial(17, 0.5, 64), minlength=18).tolist(),
    "weight/second_moment_pos": 0.9 + rng.normal(0, 0.02),
    "weight/second_moment_bound_pos": 2.2 + rng.normal(0, 0.05),
    "gradient_share/positive": 0.5 + rng.normal(0, 0.02),
    "gradient_share/length_q4": 0.6 + rng.normal(0, 0.05),
    "objective/loss": rng.normal(0, 0.05),
    "objective/coefficient_mean": 0.93 - 0.05 * lag / 7 + rng.normal(0, 0.01),
    "objective/coefficient_mean_pos": 0.95 - 0.03 * lag / 7 + rng.normal(0, 0.015),
    "objective/coefficient_mean_neg": 0.91 - 0.08 * lag / 7 + rng.normal(0, 0.015),
    "staleness/mean": float(lag),
    "staleness/max": float(lag),
    "staleness/stale_fraction": 0.2 * done + rng.uniform(0, 0.05),
    "mismatch/abs_log_ratio_mean": 4e-3 * np.exp(rng.normal(0, 0.1)),
    "mismatch/abs_log_ratio_p95": 1.2e-2 * np.exp(rng.normal(0, 0.1)),
    "mismatch/abs_log_ratio_max": 0.15 * np.exp(rng.normal(0, 0.4)),
    "mismatch/outside_0.8_1.25": abs(rng.normal(0, 4e-4)),
    "mismatch/outside_0.5_2": 0.0,
    "response/length": length,
    "response/truncated_fraction": float(np.clip(0.12 * (1 - done) + rng.normal(0, 0.01), 0, 1)),
    "grad/norm": 0.8 * np.exp(rng.normal(0, 0.35)) * (40 if step in (23, 24) else 1),
    "time/sample_s": sample_s,
    "time/update_s": update_s,
    "time/wait_s": abs(rng.normal(0, 0.01)) + (2.6 if lag == 0 else 0.0),
    "time/publish_s": 0.3 + abs(rng.normal(0, 0.02)) if lag == 0 else 0.0,
    "time/sampler_wait_s": 1.9 + 2 * done + abs(rng.normal(0, 0.4)) if lag == 0 else 0.0,
    "time/queue_depth": float(MINIBATCHES - lag),
    "throughput/sampled_tokens_per_s": 64 * MINIBATCHES * length / 3.1 * rng.normal(1, 0.03),
    "throughput/trained_tokens_per_s": 64 * length / update_s,
  }


def _rollouts(update: int, solve_rate: float, rng: np.random.Generator) -> list[dict]:
  lines = []
  for group in range(PROMPTS):
    terms = rng.integers(10, 999, size=3)
    answer = int(terms.sum())
    prompt = f"State the final answer to the following arithmetic problem:\n{terms[0]} + {terms[1]}"
    outcomes = rng.random(SAMPLES) < solve_rate
    for sample, right in enumerate(outcomes):
      guess = answer if right else answer + int(rng.integers(1, 90))
      status = "ok" if right else str(rng.choice(["wrong", "wrong", "wrong", "unparsed"]))
      cut = status == "unparsed"
      lines.append(
        {
          "update": update,
          "group_id": (update - 1) // MINIBATCHES * PROMPTS + group,
          "sample": sample,
          "task": CONFIG["task"]["name"],
          "example_id": int(rng.integers(0, 5000)) if sample == 0 else lines[-1]["example_id"],
          "prompt": f"{prompt} + {terms[2]} =",
          "response": f"{terms[0]} + {terms[1]} = {terms[0] + terms[1]}\n"
          + (
            f"so {terms[0] + terms[1]} + {terms[2]} is, hm, " * 3
            if cut
            else f"{terms[0] + terms[1]} + {terms[2]} = {guess}\n<answer>{guess}</answer>"
          ),
          "answer": str(answer),
          "reward": float(right),
          "reward_status": status,
          "finish": "length" if cut else "stop",
          "advantage": float(right - outcomes.mean()),
          "log_w": float(rng.normal(-0.02, 0.2)),
          "weight_version": update - 1,
        }
      )
  return [line | _tokens(line, update) for line in lines]


def _tokens(line: dict, update: int) -> dict:
  """Numbers of the tokens of a response: its words, and an end without text."""
  rng = np.random.default_rng([update, line["group_id"], line["sample"]])
  texts = re.findall(r"\s*\S+|\s+$", line["response"]) + [""] * (line["finish"] == "stop")
  behaviour = -rng.gamma(0.3, 0.6, len(texts))
  log_ratio = np.minimum(rng.standard_t(3, len(texts)) * 0.05, -behaviour)
  weight = np.exp(log_ratio.sum())
  phi = weight**2 * np.exp(3 * (1 - weight))
  lag = (line["group_id"] + update) % MINIBATCHES
  return {
    "length": len(texts),
    "log_w": float(log_ratio.sum()),
    "staleness": lag,
    "weight_version": max(update - 1 - lag, 0),
    "token_text": texts,
    "token_behaviour_logprob": [float(f"{x:.6g}") for x in behaviour],
    "token_log_ratio": [float(f"{x:.6g}") for x in log_ratio],
    "token_coefficient": [float(f"{phi:.6g}")] * len(texts),
  }


def _result(updates: int, wall_time_s: float) -> dict:
  problems = {"problems": 200, "samples_per_problem": 4}
  return {
    "stop_reason": "finished",
    "updates": updates,
    "wall_time_s": round(wall_time_s, 1),
    "evaluation_before": {"accuracy": 0.243, "low": 0.214, "high": 0.272} | problems,
    "evaluation_after": {"accuracy": 0.751, "low": 0.722, "high": 0.779} | problems,
  }


if __name__ == "__main__":
  print(write(Path(sys.argv[1])))
