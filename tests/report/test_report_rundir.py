"""Reading a run directory: what is sampled, shortened, left out and refused."""

import json

import numpy as np
import pytest
import synthetic_run

from vespo_jax import metrics
from vespo_jax.report import rollouts, rundir


def test_all_rollouts_are_taken_where_they_are_few(reported):
  run = rundir.load(reported)
  assert (
    run.rollouts_total == len(run.rollouts) == 20 * synthetic_run.PROMPTS * synthetic_run.SAMPLES
  )


def test_of_many_the_groups_are_whole_spread_over_the_run_and_of_both_kinds(reported, monkeypatch):
  monkeypatch.setattr(rollouts, "MAX_ROLLOUTS", 320)
  everything = {(r["update"], r["group_id"]): [] for r in _recorded(reported)}
  for record in _recorded(reported):
    everything[record["update"], record["group_id"]].append(record["reward"])
  kept, total = rollouts.load(reported)
  groups = {}
  for record in kept:
    groups.setdefault((record["update"], record["group_id"]), []).append(record["reward"])
  assert total == 1280 and len(kept) == 320
  assert all(everything[key] == rewards for key, rewards in groups.items())
  assert list(groups) == [key for key in everything if key in groups]  # in the order of the run
  updates = [update for update, _ in groups]
  assert updates[0] == 1 and updates[-1] == 153
  assert max(np.diff(updates)) <= 2 * synthetic_run.MINIBATCHES
  middle = np.median([np.mean(rewards) for rewards in everything.values()])
  low = sum(np.mean(rewards) < middle for rewards in groups.values())
  high = sum(np.mean(rewards) > middle for rewards in groups.values())
  assert min(low, high) >= 12


def _recorded(workdir):
  for file in sorted((workdir / "rollouts").iterdir()):
    yield from map(json.loads, file.read_text().splitlines())


def test_the_page_is_bounded_whatever_is_recorded(small_run, monkeypatch):
  monkeypatch.setattr(rollouts, "MAX_BYTES", 40_000)
  kept, total = rollouts.load(small_run)
  assert total == 128 and 0 < len(kept) < 128 and len(kept) % synthetic_run.SAMPLES == 0
  assert len(json.dumps(rollouts.pack(kept))) <= 40_000


def test_of_many_files_the_first_and_the_last_are_kept(small_run, monkeypatch):
  monkeypatch.setattr(rollouts, "MAX_FILES", 60)
  template = json.loads((small_run / "rollouts" / "000001.jsonl").read_text().splitlines()[0])
  for update in range(1, 201):
    line = json.dumps(template | {"update": update}) + "\n"
    (small_run / "rollouts" / f"{update:06d}.jsonl").write_text(line * 8)
  kept, total = rollouts.load(small_run)
  updates = sorted({record["update"] for record in kept})
  assert len(kept) == 480 and total == 1600
  assert len(updates) == 60 and updates[0] == 1 and updates[-1] == 200


def test_a_long_text_keeps_its_ends_and_says_what_it_lost(small_run):
  line = {"group_id": 0, "response": "start " + "x" * 20_000 + " end", "reward": float("nan")}
  (small_run / "rollouts" / "000001.jsonl").write_text(json.dumps(line) + "\n")
  (rollout,) = [r for r in rundir.load(small_run).rollouts if "start" in r["response"]]
  response = rollout["response"]
  assert response.startswith("start ") and response.endswith(" end")
  assert "14010 characters left out" in response and len(response) < rollouts.MAX_TEXT + 100
  assert rollout["reward"] == "NaN"


def test_a_response_of_many_tokens_keeps_its_ends_and_their_numbers(small_run):
  numbers = [float(i) for i in range(4000)]
  line = {"update": 1, "group_id": 0, "token_text": [f" {i}" for i in range(4000)]}
  line |= {"token_log_ratio": numbers, "response": ""}
  (small_run / "rollouts" / "000001.jsonl").write_text(json.dumps(line) + "\n")
  packed = rollouts.pack(rundir.load(small_run).rollouts[:1])["rollouts"][0]
  assert packed["length"] == 4000 and len(packed["tokens"]) == rollouts.MAX_TOKENS + 1
  for text, number in zip(packed["tokens"], packed["log_ratio"], strict=True):
    assert "2500 tokens left out" in text if number is None else text == f" {number:.0f}"
  assert packed["log_ratio"][999:1002] == [999.0, None, 3500.0]


@pytest.mark.parametrize(
  "values, scale", [([], 1.0), ([0.0], 1.0), ([0.2], 0.2), ([-0.21], 0.5), ([51.0, "NaN"], 100.0)]
)
def test_a_colour_is_full_at_a_round_number(values, scale):
  scales = rollouts.pack([{"token_log_ratio": values}])["scales"]
  assert scales["log_ratio"] == scale


@pytest.mark.parametrize("line", ["5", "[]", '"x"', "[" * 100_000])
def test_lines_that_are_no_records_are_refused(small_run, line):
  (small_run / "rollouts" / "000001.jsonl").write_text(line + "\n")
  with pytest.raises(rundir.RunError, match=r"000001\.jsonl"):
    rundir.load(small_run)


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


@pytest.mark.parametrize(
  "stop_reason, updates, rows",
  [
    ("finished", 9, 9),
    ("preempted", 9, 9),
    ("Diverged: update 9 is bad: its loss is nan", 8, 9),  # its row is there, but it is not counted
    ("SamplersFailed: sampler 0 died", 10, 9),  # while the row of update 10 was still to be fetched
  ],
)
def test_a_result_is_of_the_attempt_that_made_the_last_row(stop_reason, updates, rows, small_run):
  result = {"stop_reason": stop_reason, "updates": updates, "wall_time_s": 5.0}
  result |= {"evaluation_before": {"accuracy": 0.25}, "evaluation_after": {"accuracy": 0.5}}
  (small_run / "result.json").write_text(json.dumps(result))
  assert rundir.load(small_run).result == result
  with metrics.MetricsWriter(small_run / "metrics.jsonl") as writer:
    for step in range(rows + 1, updates + 2 + stop_reason.startswith("Diverged")):
      writer.write({"step": step})  # it goes on
    assert rundir.load(small_run).result == {"evaluation_before": {"accuracy": 0.25}}
    writer.truncate(updates - 2)  # it goes on from an earlier checkpoint
  assert rundir.load(small_run).result == {"evaluation_before": {"accuracy": 0.25}}


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
