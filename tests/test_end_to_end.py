"""Whole runs: determinism, resuming, failing loudly, learning."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import debug
from tests.watched import pickle_watch
from vespo_jax import config as config_lib
from vespo_jax import launch, metrics, models, objectives, replay_failure

pytestmark = pytest.mark.usefixtures("no_report")  # but the commands do
REPOSITORY = Path(__file__).parent.parent
METRICS = """
  reward/mean objective/loss objective/coefficient_mean weight/log_w_mean weight/log_w_std
  weight/ess_fraction staleness/mean staleness/max kl/behaviour_policy entropy/mean grad/norm
  response/length response/truncated_fraction time/sample_s time/update_s time/wait_s
  throughput/sampled_tokens_per_s throughput/trained_tokens_per_s step weight_version wall_time_s
""".split()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return str(tmp_path_factory.mktemp("data"))


def debug_config(data_dir, **changes):
  config = debug.get_config()
  config.task.data_dir = data_dir
  config.runtime.transport = "threads"
  config.update_from_flattened_dict(changes)
  return config_lib.validate(config)


def command(workdir, data_dir, *arguments, config="debug"):
  return [
    sys.executable,
    "-m",
    "vespo_jax.train",
    f"--config=configs/{config}.py",
    f"--workdir={workdir}",
    f"--config.task.data_dir={data_dir}",
    *arguments,
  ]


def rows(workdir, drop="time/"):
  """The metrics of a run as the bytes that two runs of one seed share, without those of an area."""
  kept = [metrics.strip_timings(row) for row in metrics.read(workdir / "metrics.jsonl")]
  return [json.dumps({k: v for k, v in row.items() if not k.startswith(drop)}) for row in kept]


@pytest.fixture(scope="module")
def first_run(data_dir, tmp_path_factory):
  """The debug run as a user starts it: a command, a sampler process."""
  workdir = tmp_path_factory.mktemp("first") / "run"
  with pickle_watch.watched_children(workdir.parent / "pickles"):
    done = subprocess.run(
      command(workdir, data_dir), cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )
  assert done.returncode == 0, done.stderr
  return workdir, done.stdout


def test_a_run_leaves_its_directory_and_its_summary(first_run):
  workdir, output = first_run
  assert "held-out accuracy before:" in output and "held-out accuracy after:" in output
  assert str(workdir / "report.html") in output
  for name in (
    "config.json",
    "metrics.jsonl",
    "result.json",
    "report.html",
    "figures",
    "rollouts/000001.jsonl",
    "checkpoints/4",
    "model/model.safetensors",
  ):
    assert (workdir / name).exists(), name
  stored = metrics.read(workdir / "metrics.jsonl")
  assert [row["step"] for row in stored] == [1, 2, 3, 4, 5, 6]
  assert [row["staleness/max"] for row in stored] == [0, 1, 0, 1, 0, 1]
  assert [row["time/publish_s"] > 0 for row in stored] == [True, False] * 3
  for row in stored:
    assert not set(METRICS) - set(row)
  saved = (workdir / "rollouts" / "000001.jsonl").read_text().splitlines()
  assert [json.loads(line)["group_id"] for line in saved] == [0] * 4 + [1] * 4  # two groups
  result = json.loads((workdir / "result.json").read_text())
  assert result["stop_reason"] == "finished" and result["updates"] == 6
  for when in ("evaluation_before", "evaluation_after"):
    numbers = {"accuracy", "low", "high", "problems", "samples_per_problem"}
    assert set(result[when]) == {*numbers, "pass_at_k"}


def test_no_process_of_a_run_pickles_or_unpickles(first_run):
  started, told = pickle_watch.read(first_run[0].parent / "pickles")
  modules = {"train", "runtime.sampler_process", "tasks.grader_process", "tasks.build"}
  assert started == {f"-m vespo_jax.{module}" for module in modules}
  assert told == []


def test_the_first_minibatch_of_a_batch_is_on_policy(first_run):
  """Sampler and learner compute the same log-probs: W = 1 where nothing is stale."""
  for row in metrics.read(first_run[0] / "metrics.jsonl"):
    spread = max(abs(row["weight/log_w_min"]), abs(row["weight/log_w_max"]))
    if row["staleness/max"] == 0:
      assert spread < 5e-5
      assert row["objective/coefficient_mean"] == pytest.approx(1.0, abs=1e-4)
    else:
      assert spread > 1e-3


def test_what_was_rewarded_is_likelier_afterwards(first_run):
  """And what was not is less likely: wherever a sign is wrong, between reward and parameter."""
  workdir, _ = first_run
  spec, params, tokenizer = models.load(workdir)
  lines = [line for path in (workdir / "rollouts").iterdir() for line in path.open()]
  saved = [row for row in map(json.loads, lines) if row["advantage"]]
  tokens_BT, real_BT, response_BT = np.zeros((3, len(saved), 96), np.int32)
  before_B, advantage_B = np.zeros((2, len(saved)))
  for i, row in enumerate(saved):
    prompt, response = tokenizer.encode(row["prompt"]), tokenizer.encode(row["response"])
    start, end = len(prompt), len(prompt) + len(response)
    tokens_BT[i, :end], real_BT[i, :end], response_BT[i, start:end] = [*prompt, *response], 1, 1
    before_B[i] = sum(row["token_behaviour_logprob"][: len(response)])
    advantage_B[i] = row["advantage"]
  score = jax.jit(models.token_logprobs, static_argnums=1)
  logprobs_BT, _ = score(params, spec, tokens_BT, segments=real_BT)
  gained_B = np.sum(logprobs_BT * response_BT, axis=1) - before_B
  assert gained_B[advantage_B > 0].mean() > 0.01 > -0.1 > gained_B[advantage_B < 0].mean()


@pytest.fixture(scope="module")
def traced_run(data_dir, tmp_path_factory):
  """The debug run in this process, with a trace of two of its updates, evaluated in between."""
  workdir = tmp_path_factory.mktemp("traced") / "run"
  changes = {"runtime.profile_updates": 2, "evaluation.every": 2}
  rows_at = {}  # of metrics: updates that have ended
  with pytest.MonkeyPatch.context() as patch:
    for trace in (jax.profiler.start_trace, jax.profiler.stop_trace):

      def noted(*arguments, trace=trace):
        rows_at[trace.__name__] = len(metrics.read(workdir / "metrics.jsonl"))
        return trace(*arguments)

      patch.setattr(jax.profiler, trace.__name__, noted)
    launch.train(debug_config(data_dir, **changes), workdir)
  assert rows_at == {"start_trace": 1, "stop_trace": 3}
  return workdir


def test_the_updates_asked_for_are_traced_and_no_other(first_run, traced_run):
  assert not (first_run[0] / "profile").exists()  # none were asked for
  (path,) = (traced_run / "profile").rglob("*.xplane.pb")
  planes = jax.profiler.ProfileData.from_file(str(path)).planes
  seen = [event.name for plane in planes for line in plane.lines for event in line.events]
  assert len([name for name in seen if re.fullmatch(r"\$update\.py:\d+ call", name)]) == 2
  assert "PjitFunction(decode)" in seen  # the sampler's work too, where it is a thread
  assert not [name for name in seen if "compile_or_get_cached" in name]  # the first update does


def test_the_same_seed_gives_the_same_bytes_in_another_transport(
  first_run, traced_run, data_dir, tmp_path
):
  """And so does a run that is evaluated on the way, in all but what the evaluations found."""
  assert rows(traced_run, drop="evaluation/") == rows(first_run[0])
  for one, other in zip(
    *(jax.tree.leaves(models.load(workdir)[1]) for workdir in (traced_run, first_run[0])),
    strict=True,
  ):
    np.testing.assert_array_equal(one, other)
  found = [
    json.loads(row).keys() - json.loads(rest).keys()
    for row, rest in zip(rows(traced_run), rows(first_run[0]), strict=True)
  ]
  names = {f"evaluation/{name}" for name in ("accuracy", "low", "high", "pass_at_2")}
  assert found == [set(), names, set(), names, set(), set()]
  for step in range(1, 7):
    name = f"rollouts/{step:06d}.jsonl"
    assert (traced_run / name).read_bytes() == (first_run[0] / name).read_bytes()
  launch.train(debug_config(data_dir, seed=1, updates=1), tmp_path / "other")
  assert rows(tmp_path / "other") != rows(first_run[0])[:1]


def test_a_finished_run_is_not_run_again_but_can_be_extended(
  first_run, data_dir, tmp_path, monkeypatch
):
  workdir = tmp_path / "run"
  short = debug_config(data_dir, updates=3)  # it ends within a rollout batch
  result = launch.train(short, workdir)
  before = (workdir / "metrics.jsonl").read_bytes()
  page, written = workdir / "report.html", []
  monkeypatch.setattr("vespo_jax.report.write", written.append)
  page.write_text("of an attempt before")
  for seconds, reports in ((0, 1), (time.time(), 1)):
    os.utime(page, (seconds, seconds))
    assert launch.train(short, workdir) == result
    assert written == [workdir] * reports
  assert (workdir / "metrics.jsonl").read_bytes() == before
  launch.train(debug_config(data_dir, updates=4, **{"metrics.tensorboard": True}), workdir)
  (events,) = (workdir / "tensorboard").iterdir()
  assert b"reward/mean" in events.read_bytes()
  assert rows(workdir) == rows(first_run[0])[:4]
  assert (workdir / "metrics.jsonl").read_bytes().startswith(before)
  assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["3", "4"]
  seconds = [row["wall_time_s"] for row in metrics.read(workdir / "metrics.jsonl")]
  assert seconds == sorted(seconds)  # of the whole run, across its parts
  files = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
  for updates in (1, 3):  # before its checkpoints, and between them
    with pytest.raises(config_lib.ConfigError, match="holds a run of 4 updates already"):
      launch.train(debug_config(data_dir, updates=updates), workdir)
  assert files == {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
  with pytest.raises(config_lib.ConfigError, match="another optimizer.learning_rate"):
    launch.train(debug_config(data_dir, **{"optimizer.learning_rate": 1.0}), workdir)


@pytest.mark.slow
def test_a_policy_from_random_weights(data_dir, tmp_path):
  config = debug_config(data_dir, **{"policy.path": "", "policy.width": 32, "updates": 2})
  launch.train(config, tmp_path)
  assert models.load(tmp_path)[0].width == 32


EXPERTS = {
  "policy.path": "",
  "policy.width": 32,
  "policy.mlp_width": 32,
  "policy.layers": 2,
  "policy.experts": 4,
  "policy.active_experts": 2,
  "moe.balance_coefficient": 0.01,
  "updates": 2,
}


@pytest.mark.slow
@pytest.mark.parametrize("replay", ["R2", "R3"])
def test_a_mixture_of_experts_trains_with_its_choices_replayed(replay, data_dir, tmp_path):
  config = debug_config(data_dir, **EXPERTS, **{"moe.replay": replay, "sampler.dtype": "bfloat16"})
  launch.train(config, tmp_path)
  first, second = metrics.read(tmp_path / "metrics.jsonl")
  for row in (first, second):
    assert 1 <= row["moe/load_max"] <= 2 and 0 < row["moe/load_entropy"] <= 1
  if replay == "R2":  # in the first minibatch the proximal policy is the policy itself
    assert first["moe/replay_mismatch_fraction"] == 0
    assert first["kl/proximal_policy"] < 1e-9 < second["kl/proximal_policy"]
  else:  # the sampler rounds to bfloat16; that choices flip then: tests/learner/test_routing.py
    assert first["moe/replay_mismatch_fraction"] < 0.1 and first["mismatch/abs_log_ratio_mean"] > 0
  assert models.load(tmp_path)[0].experts == 4


def test_replay_is_refused_where_the_policy_turns_out_to_be_dense(data_dir, tmp_path):
  with pytest.raises(config_lib.ConfigError, match="moe.replay='R3' needs a mixture"):
    launch.train(debug_config(data_dir, **{"moe.replay": "R3"}), tmp_path)


ANCHORED = {
  "objective.name": "m2po",  # of the whole minibatch: a pass over all micro-batches first
  "correction.denominator": "proximal",
  "kl.coefficient": 0.1,
  "entropy.coefficient": 0.01,
  "proximal_step.divergence": "kl",
  "optimizer.integrator": "heun",
  "sampler.temperature": 0.8,
  "evaluation.every": 2,
}
CORRECTED = {
  "objective.name": "vcpo",
  "advantage.name": "vcpo",
  "advantage.vcpo.score": "logit",
  "optimizer.ess_scaling": "sqrt",
  "sampler.dtype": "bfloat16",
  "correction.denominator": "decoupled",
  "correction.name": "token_tis",
  "kl.coefficient": 0.1,
  "kl.placement": "reward",
}


@pytest.mark.slow
def test_proximal_and_reference_policies(data_dir, tmp_path):
  launch.train(debug_config(data_dir, **ANCHORED, updates=4), tmp_path / "run")
  first, second, third, _ = metrics.read(tmp_path / "run" / "metrics.jsonl")
  assert first["kl/proximal_policy"] < 1e-9 and third["kl/proximal_policy"] < 1e-9
  assert second["kl/proximal_policy"] > 1e-7  # one update behind
  assert first["kl/behaviour_policy"] < 1e-9  # the learner's temperature is the sampler's
  assert "evaluation/accuracy" in second and "evaluation/accuracy" not in first
  assert first["kl/policy_reference"] < 1e-9 < 1e-7 < third["kl/policy_reference"]


@pytest.mark.slow
def test_a_sampler_of_another_precision_is_corrected_for(data_dir, tmp_path):
  launch.train(debug_config(data_dir, **CORRECTED, updates=2), tmp_path)
  first, second = metrics.read(tmp_path / "metrics.jsonl")
  assert 1e-7 < first["correction/kl"] < 1e-2  # bfloat16 against float32, the same weights
  assert first["kl/proximal_policy"] < 1e-9 < first["kl/behaviour_policy"]
  assert second["optimizer/ess_scale"] < 1


@pytest.mark.slow
@pytest.mark.parametrize("name", objectives.names())
def test_every_objective_trains(name, data_dir, tmp_path):
  config = debug_config(data_dir, **{"objective.name": name, "updates": 2})
  assert launch.train(config, tmp_path / "run")["stop_reason"] == "finished"


@pytest.mark.slow
def test_divergence_stops_the_run_and_its_update_can_be_made_again(data_dir, tmp_path, capsys):
  """Adam moves every parameter by the rate, so the second update meets a policy in ruins."""
  config = debug_config(
    data_dir, **{"optimizer.learning_rate": 1e30, "optimizer.warmup_updates": 0}
  )
  with pytest.raises(launch.Diverged, match=r"update 2 is bad: .*its gradient is not finite"):
    launch.train(config, tmp_path)
  result = json.loads((tmp_path / "result.json").read_text())
  assert "Diverged" in result["stop_reason"] and result["updates"] == 1
  report = json.loads((tmp_path / "failure" / "report.json").read_text())
  assert report["update"] == 2 and report["checkpoint"] is None
  assert report["gradient_norms"]["layers/query"] == "nan" and not report["non_finite_parameters"]
  assert len((tmp_path / "failure" / "rollouts.jsonl").read_text().splitlines()) == 16
  assert replay_failure.main(["", f"--workdir={tmp_path}"]) == 0
  printed = capsys.readouterr().out
  assert "made again, it is bad: gradient" in printed and "layers/key: nan" in printed
  assert replay_failure.main(["", f"--workdir={tmp_path / 'elsewhere'}"]) == 2


@pytest.mark.slow
def test_bad_updates_are_skipped_as_often_as_allowed(data_dir, tmp_path, capsys):
  config = debug_config(data_dir, **{"guards.max_grad_norm": 1e-9, "guards.max_skipped": 2})
  with pytest.raises(launch.Diverged, match="update 3 is bad: its gradient norm .* is above"):
    launch.train(config, tmp_path)
  assert "update 2 was skipped" in capsys.readouterr().err
  rows = metrics.read(tmp_path / "metrics.jsonl")
  assert [row["guard/tripped"] for row in rows] == [1, 1, 1]
  assert rows[1]["weight/log_w_max"] < 5e-5  # the policy is still the one that sampled


def start(workdir, data_dir, *arguments):
  """A long run in the background, once it has made some updates; its process."""
  process = subprocess.Popen(
    command(workdir, data_dir, "--config.updates=100000", *arguments),
    cwd=REPOSITORY,
    stderr=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  deadline = time.monotonic() + 120
  while time.monotonic() < deadline and process.poll() is None:
    if (workdir / "metrics.jsonl").is_file() and len(rows(workdir)) > 4:
      return process
    time.sleep(0.1)
  process.kill()
  raise AssertionError(f"the run made no updates: {process.communicate()[1]}")


def children(pid):
  done = subprocess.run(
    ["ps", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True, text=True
  )
  return {
    line.split()[4 - 1].rsplit(".", 1)[-1]: int(line.split()[0])
    for line in done.stdout.splitlines()
    if " -m " in line
  }


def test_a_killed_sampler_is_replaced_and_sigterm_saves_the_state(data_dir, tmp_path):
  """Of one run, which says so in its result; exit code 75, and no process is left."""
  process = start(tmp_path / "run", data_dir, "--config.checkpoint.every=0")
  family = children(process.pid)
  assert set(family) == {"sampler_process", "grader_process"}
  os.kill(family["sampler_process"], signal.SIGKILL)
  made, deadline = len(rows(tmp_path / "run")), time.monotonic() + 120
  while len(rows(tmp_path / "run")) < made + 4 and time.monotonic() < deadline:
    time.sleep(0.1)
  family |= children(process.pid)
  process.terminate()
  output, errors = process.communicate(timeout=120)
  assert process.returncode == 75, errors
  result = json.loads((tmp_path / "run" / "result.json").read_text())
  (failure,) = result["sampler_failures"]
  assert failure["kind"] == "died" and "was killed by SIGKILL" in failure["reason"]
  steps = [row["step"] for row in metrics.read(tmp_path / "run" / "metrics.jsonl")]
  assert steps == list(range(1, result["updates"] + 1)) and len(steps) >= made + 4
  assert result["stop_reason"] == "preempted"
  assert (tmp_path / "run" / "checkpoints" / str(result["updates"])).is_dir()
  assert f"stopped after update {result['updates']}" in output
  for pid in family.values():
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.slow
def test_reward_rises(data_dir, tmp_path):
  """The quickstart's own start and task."""
  done = subprocess.run(
    command(
      tmp_path,
      data_dir,
      *("--config.updates=24", "--config.batch.prompts=16", "--config.batch.micro_batches=2"),
      *("--config.optimizer.learning_rate=3e-4", "--config.evaluation.problems=60"),
      config="quickstart",
    ),
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
    timeout=400,
  )
  assert done.returncode == 0, done.stderr
  result = json.loads((tmp_path / "result.json").read_text())
  reward = [row["reward/mean"] for row in metrics.read(tmp_path / "metrics.jsonl")]
  assert np.mean(reward[-8:]) > np.mean(reward[:8]) + 0.05
  assert result["evaluation_after"]["accuracy"] > result["evaluation_before"]["accuracy"] + 0.05
