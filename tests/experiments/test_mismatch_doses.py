"""The dose table: zero where nothing differs, and what it says of a dose computed once more."""

import jax
import numpy as np
import pytest

from experiments import mismatch_doses as mismatch
from tests.sampler.toy import PROMPTS, SPEC, learner_logprobs, settings, weights
from vespo_jax import sampler
from vespo_jax.sampler.weights import prepare

PARAMS = weights(0)
HOW = settings(temperature=0.9)


@pytest.mark.slow
def test_a_run_on_a_toy_writes_the_table_and_the_figure(tmp_path, monkeypatch, capsys):
  policy = lambda prompts: (SPEC, PARAMS, PROMPTS[:prompts], HOW)
  monkeypatch.setattr(mismatch, "quickstart_policy", policy)
  monkeypatch.setattr(mismatch, "BATCH", 2)
  few = [dose for dose in mismatch.DOSES if dose.dtype != "bfloat16"]  # one less to compile
  monkeypatch.setattr(mismatch, "DOSES", few)
  rows = {}
  keep = lambda *args, measure=mismatch.measure: rows.setdefault(args[-1].name, measure(*args))
  monkeypatch.setattr(mismatch, "measure", keep)
  assert mismatch.main(["--preset=smoke", f"--out={tmp_path}"]) == 0
  page = (tmp_path / "mismatch_doses.md").read_text()
  assert (tmp_path / "mismatch_doses.png").stat().st_size > 10_000
  assert capsys.readouterr().out.strip() in page and "16 responses" in page
  assert "| float32 | 0 | 0 | 0 | 0 | 0 | 0 | 0 |" in page

  mean, largest = "mismatch/abs_log_ratio_mean", "mismatch/abs_log_ratio_max"
  assert 0 < rows["learner"][mean] < rows["learner"][largest] < 1e-4
  noise = [rows[f"noise {scale:g}"][mean] for scale in (1e-4, 1e-3, 1e-2, 1e-1)]
  assert 1e-5 < noise[0] and all(3 < b / a < 30 for a, b in zip(noise, noise[1:], strict=False))
  assert 1e-4 < rows["int8"][mean] < rows["int8, noise 0.01"][mean]
  assert_computed_again(rows["noise 0.1"])


def assert_computed_again(row):
  """From the toy's own log-probs of what the noisy engine sampled, with numpy."""
  noisy = prepare(PARAMS, 0, "float32", 0.1)
  ratios = []
  for start in (0, 2):
    rollouts = sampler.generate(
      noisy, SPEC, PROMPTS[start : start + 2], jax.random.key(0), HOW,
      group_ids=[start, start + 1],
    )  # fmt: skip
    ratios += [
      learner_logprobs(PARAMS, r, temperature=0.9) - r.behaviour_logprobs for r in rollouts
    ]
  sizes, log_w = np.abs(np.concatenate(ratios)), np.abs([x.sum() for x in ratios])
  ratio = np.exp(np.concatenate(ratios))
  expected = {
    "sequences": 16,
    "mismatch/tokens": len(sizes),
    "mismatch/abs_log_ratio_mean": sizes.mean(),
    "mismatch/abs_log_ratio_p95": np.quantile(sizes, 0.95, method="inverted_cdf"),
    "mismatch/abs_log_ratio_max": sizes.max(),
    "abs_log_w_mean": log_w.mean(),
    "abs_log_w_max": log_w.max(),
    "mismatch/outside_0.8_1.25": np.mean((ratio < 0.8) | (ratio > 1.25)),
    "mismatch/outside_0.5_2": np.mean((ratio < 0.5) | (ratio > 2)),
  }
  assert row.pop("dose") == "noise 0.1"
  assert row == pytest.approx(expected, rel=1e-4)


def test_a_place_that_cannot_be_written_ends_with_one_message(tmp_path, capsys):
  (tmp_path / "file").touch()
  assert mismatch.main([f"--out={tmp_path / 'file'}"]) == 2
  assert capsys.readouterr().err.count("error:") == 1
