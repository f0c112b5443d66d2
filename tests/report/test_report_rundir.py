"""Reading a run directory: what is sampled, shortened, left out and refused."""

import json

import pytest
import synthetic_run

from vespo_jax.report import rundir


def test_rollouts_are_capped_in_whole_groups_spread_over_the_run(reported):
  run = rundir.load(reported)
  assert run.rollouts_total == 20 * synthetic_run.PROMPTS * synthetic_run.SAMPLES
  assert 300 < len(run.rollouts) <= rundir.MAX_ROLLOUTS
  groups = {}
  for rollout in run.rollouts:
    groups.setdefault((rollout["update"], rollout["group_id"]), set()).add(rollout["sample"])
  assert all(samples == set(range(synthetic_run.SAMPLES)) for samples in groups.values())
  assert {update for update, _ in groups} == set(range(1, 161, synthetic_run.MINIBATCHES))


def test_of_many_files_the_first_and_the_last_are_kept(small_run):
  template = json.loads((small_run / "rollouts" / "000001.jsonl").read_text().splitlines()[0])
  for update in range(1, 201):
    line = json.dumps(template | {"update": update}) + "\n"
    (small_run / "rollouts" / f"{update:06d}.jsonl").write_text(line * 30)
  run = rundir.load(small_run)
  updates = sorted({rollout["update"] for rollout in run.rollouts})
  assert len(run.rollouts) == rundir.MAX_ROLLOUTS and run.rollouts_total == 6000
  assert len(updates) == rundir.MAX_ROLLOUT_FILES and updates[0] == 1 and updates[-1] == 200


def test_a_long_text_keeps_its_ends_and_says_what_it_lost(small_run):
  line = {"group_id": 0, "response": "start " + "x" * 20_000 + " end", "reward": float("nan")}
  (small_run / "rollouts" / "000001.jsonl").write_text(json.dumps(line) + "\n")
  (rollout,) = [r for r in rundir.load(small_run).rollouts if "start" in r["response"]]
  response = rollout["response"]
  assert response.startswith("start ") and response.endswith(" end")
  assert "14010 characters left out" in response and len(response) < rundir.MAX_TEXT + 100
  assert rollout["reward"] == "NaN"


def test_a_half_written_rollout_is_left_out(small_run):
  file = small_run / "rollouts" / "000009.jsonl"
  before = len(rundir.load(small_run).rollouts)
  file.write_text(file.read_text() + '{"update": 9, "resp')
  assert len(rundir.load(small_run).rollouts) == before


def test_what_is_missing_is_empty(small_run):
  (small_run / "config.json").unlink()
  for file in (small_run / "rollouts").iterdir():
    file.unlink()
  run = rundir.load(small_run)
  assert (run.config, run.result, run.rollouts, run.rollouts_total) == ({}, {}, [], 0)
  assert run.setting("objective.name") is None


def test_settings_are_found_by_dotted_name(reported):
  run = rundir.load(reported)
  assert run.setting("objective.vespo.k_pos") == 2.0
  assert run.setting("updates.more") is None


@pytest.mark.parametrize(
  "name, text", [("config.json", "{"), ("result.json", "[]"), ("rollouts/000001.jsonl", "{]\n")]
)
def test_a_broken_file_is_named(small_run, name, text):
  (small_run / name).write_text(text)
  with pytest.raises(rundir.RunError, match=name):
    rundir.load(small_run)


def test_a_run_of_supervised_fine_tuning_is_refused_by_name(small_run):
  (small_run / "metrics.jsonl").write_text('{"step": 1, "data/nll": 0.5}\n')
  with pytest.raises(rundir.RunError, match="is of vespo_jax.sft, which has no report"):
    rundir.load(small_run)
