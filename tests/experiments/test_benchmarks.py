"""The benchmark commands: what they print and refuse. No time is compared with anything."""

import json
import math

import pytest

from experiments.benchmarks import __main__ as benchmarks
from experiments.benchmarks import growth, machine, peers, workload
from experiments.benchmarks.peers import __main__ as compare
from experiments.benchmarks.workload import Workload
from tests.marks import slow_but

SIZES = [
  *("--prompts=2", "--samples=2", "--prompt-tokens=4", "--new-tokens=3"),
  *("--micro-batches=1", "--repetitions=1"),
]


@pytest.fixture(autouse=True)
def small_policy(monkeypatch):
  small = dict(vocab_size=32, width=16, layers=1, heads=2, kv_heads=1, head_width=8, mlp_width=32)
  monkeypatch.setattr(workload, "TINY", workload.ModelSpec(**small))


@pytest.mark.slow
def test_json_has_the_medians_of_the_step(capsys):
  assert benchmarks.main(["--only=rl_step", "--json", *SIZES]) == 0
  result = json.loads(capsys.readouterr().out)
  step = result.pop("benchmarks")["rl_step"]
  assert set(result) == {"sample_s", "update_s", "rl_step_s", "peak_rss_mb"}
  assert step["sample_s"] == [result["sample_s"]] and result["peak_rss_mb"] > 10
  whole = result["sample_s"] + result["update_s"]
  assert whole <= result["rl_step_s"] < whole + 1


@pytest.mark.parametrize("name", slow_but(["generate", "update", "weights"], "update"))
def test_a_benchmark_says_how_far_it_is_from_the_limit(name, capsys):
  assert benchmarks.main([f"--only={name}", *SIZES]) == 0
  text = capsys.readouterr().out
  assert text.startswith(name) and ("of the limit" in text or "copies" in text)


@pytest.mark.parametrize(
  ("options", "words"),
  [
    (["--prompts=3", "--minibatches=2", "--micro-batches=1"], "3 prompts do not divide"),
    (["--new-tokens=0"], "new_tokens must be at least 1"),
    (["--repetitions=0", "--only=update"], "repetitions must be at least 1"),
  ],
)
def test_bad_sizes_are_refused(options, words, capsys):
  assert benchmarks.main(options) == 2
  assert words in capsys.readouterr().err


def test_useful_operations_are_those_of_the_reference():
  """435 GFLOP of update were counted independently for the reference workload."""
  reference = Workload()
  vars(reference)["policy"] = (
    workload.ModelSpec(
      vocab_size=512, width=256, layers=4, heads=8, kv_heads=4, head_width=32, mlp_width=1024
    ),
    None,
  )
  assert reference.computed_tokens == 17408
  assert reference.update_flops == pytest.approx(435e9, rel=0.01)


def test_ratios_are_of_the_same_round():
  row = lambda factor: dict.fromkeys((*compare.COLUMNS, compare.MEMORY), float(factor))
  table = compare.describe({"vespo_jax": [row(1), row(10)], "trl": [row(3), row(30)]})
  assert table.splitlines()[-1].count("(3.00x)") == 4
  assert machine.median_ratio([3, 30, 8], [1, 10, 2]) == 3


def test_the_peers_import_nothing_of_this_project():
  folder = peers.__path__[0]
  for name, _ in compare.PEERS.values():
    with open(f"{folder}/{name}.py", encoding="utf-8") as file:
      assert "import vespo_jax" not in (text := file.read()) and "experiments" not in text


def test_the_slope_is_a_power():
  assert growth.slope([1, 2, 4], [5, 1, 8]) == pytest.approx(3)
  assert math.isclose(growth.slope([10, 1000], [1, 10]), 0.5)


@pytest.mark.parametrize("name", sorted(set(growth.SWEEPS) - {"samplers"}))
def test_every_point_of_a_sweep_is_a_workload(name, monkeypatch):
  monkeypatch.setattr(growth.models, "init", lambda spec, key: {})  # operations are counted alone
  works = [growth._sizes(name, size) for size in growth.SWEEPS[name]]
  costs = [work.update_flops for work in works]
  assert name == "minibatches N" or sorted(set(costs)) == costs  # each is more work than the last
