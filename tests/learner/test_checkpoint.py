"""Which checkpoints there are, which one a run goes on from, and what happens to damaged ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.learner.many_devices import SPEC, checkpointed_state, restored_on
from tests.runtime import example
from vespo_jax import sharding, training
from vespo_jax.hosts import Hosts
from vespo_jax.learner import checkpoint, manifest
from vespo_jax.learner.checkpoint import CheckpointError, Checkpoints, RunState
from vespo_jax.learner.retention import KEEP_ALL, Retention
from vespo_jax.learner.update import init_state, place_state
from vespo_jax.models import init
from vespo_jax.runtime import Snapshot
from vespo_jax.types import TrainState

REPOSITORY = Path(__file__).parent.parent.parent


def state(step):
  return TrainState(step=jnp.int32(step), params={"w": jnp.full(3, float(step))}, opt_state=())


def run(step, **rest):
  return RunState(state(step), Snapshot(), {"seen": [str(step)]}, **rest)


def refuse(place, problem):
  raise AssertionError(f"{place}: {problem}")


@pytest.fixture
def directory(tmp_path):
  return tmp_path / "checkpoints"


def fill(directory, steps, retention=KEEP_ALL, metrics=lambda step: {}):
  checkpoints = Checkpoints(directory, SPEC, retention)
  for step in steps:
    checkpoints.save(run(step), step, metrics(step))
  checkpoints.close()
  return {int(path.name) for path in directory.iterdir()}


def restore(directory, at_most=99, set_aside=refuse, like=None, read_only=False):
  checkpoints = Checkpoints(directory, SPEC, read_only=read_only)
  try:
    return checkpoints.restore(like or state(0), at_most, set_aside)
  finally:
    checkpoints.close()


def test_the_newest_that_fits_is_restored_and_none_is_written_twice(directory):
  assert restore(directory) is None
  assert fill(directory, (2, 4, 6)) == {2, 4, 6}
  checkpoints = Checkpoints(directory, SPEC)
  checkpoints.save(RunState(state(7), Snapshot(), {}), 6)
  checkpoints.close()
  for at_most, step in ((9, 6), (6, 6), (5, 4)):
    restored = restore(directory, at_most)
    assert restored.monitor == {"seen": [str(step)]}
    assert restored.state.step == step and (restored.state.params["w"] == step).all()
  assert restore(directory, at_most=1) is None
  with pytest.raises(CheckpointError, match="update 5 is not saved: .* later ones, to 6"):
    fill(directory, (5,))


def test_what_is_kept_is_the_union_of_three_rules(directory):
  reward = {1: 0.1, 2: 0.9, 3: 0.2, 4: 0.3, 5: 0.1, 6: 0.4, 7: 0.2}
  retention = Retention(keep_last=2, keep_every=3, keep_best=1, best_metric="reward/mean")
  kept = fill(directory, reward, retention, lambda step: {"reward/mean": reward[step]})
  assert kept == {1, 4, 7} | {2} | {6, 7}  # every third, the best, the last two


@pytest.mark.parametrize("sign,best", [("", 1), ("-", 3)])
def test_a_metric_is_largest_or_smallest_at_its_best_and_never_where_it_is_no_number(
  sign, best, directory
):
  nll = {1: 0.9, 2: np.nan, 3: 0.2, 4: -sign.count("-") * np.inf or np.inf, 5: 0.3}
  retention = Retention(keep_last=1, keep_best=1, best_metric=f"{sign}held_out/nll")
  assert fill(directory, nll, retention, lambda step: {"held_out/nll": nll[step]}) == {best, 5}


class AsSeveral(Hosts):
  """One process that tells itself what several would tell one another: as JSON."""

  def tell(self, make):
    return json.loads(json.dumps(make()))


def test_a_run_that_has_sampled_more_replaces_its_checkpoint_of_as_many_updates(
  directory, monkeypatch
):
  fill(directory, (2, 4))
  checkpoints = Checkpoints(directory, SPEC, hosts=AsSeveral())
  assert checkpoints.restore(state(0), 99, refuse).state.step == 4
  before = sorted((path, path.stat().st_mtime_ns) for path in directory.rglob("*"))
  checkpoints.save(run(4), 4)  # as it was read
  checkpoints.wait()
  assert before == sorted((path, path.stat().st_mtime_ns) for path in directory.rglob("*"))
  for position in (8, 88):
    checkpoints.save(run(4, prompts={"position": position}), 4)
    assert restore(directory, read_only=True).prompts == {"position": position}
  assert {path.name for path in directory.parent.iterdir()} == {"checkpoints"}
  monkeypatch.setattr(checkpoints._manager, "save", lambda *args, **more: False)  # as if killed
  with pytest.raises(CheckpointError):
    checkpoints.save(run(4, prompts={"position": 99}), 4)
  checkpoints.close()
  assert not (directory / "4").exists()
  assert restore(directory).prompts == {"position": 88}
  assert {path.name for path in directory.parent.iterdir()} == {"checkpoints"}


def test_that_checkpoints_lack_the_metric_they_are_kept_by_is_told_once(directory, capsys):
  metrics = lambda step: {"reward/mean": 0.1, "grad/norm": 1.0}
  fill(directory, (1,), Retention(keep_best=1, best_metric="reward/mean"), metrics)
  fill(directory, (2, 3), Retention(best_metric="reward/meen"), metrics)
  best = Retention(keep_best=1, best_metric="evaluation/accuracy")  # the last has often none
  some = lambda step: {"evaluation/accuracy" if step == 1 else "grad/norm": 1.0}
  fill(directory.with_name("other"), (1, 2), best, some)
  assert not capsys.readouterr().err
  fill(directory, (4, 5), Retention(keep_best=1, best_metric="reward/meen"), metrics)
  (told,) = capsys.readouterr().err.splitlines()
  assert told.startswith("WARNING: update 4 has no checkpoint.best_metric='reward/meen'")
  assert told.endswith("metrics of a like name: reward/mean")


def test_room_is_made_before_a_state_is_read_and_for_no_other_reason(directory, monkeypatch):
  spoken = []
  read = Checkpoints._read
  monkeypatch.setattr(
    Checkpoints, "_read", lambda *arguments: spoken.append("read") or read(*arguments)
  )
  for expected in ([], ["room", "read"]):
    checkpoints = Checkpoints(directory, SPEC)
    found = checkpoints.restore(state(0), 9, refuse, lambda: spoken.append("room"))
    assert spoken == expected and (found is None) == (not expected)
    checkpoints.save(run(1), 1)
    checkpoints.close()


def test_a_run_that_goes_on_does_not_hold_two_optimizers(directory):
  mesh = sharding.make_mesh({}, jax.local_devices()[:1])
  adam = optax.adam(1e-3)
  make = lambda seed: place_state(mesh, SPEC, init_state(init(SPEC, jax.random.key(seed)), adam))
  saved, fresh = make(0), make(1)
  checkpoints = Checkpoints(directory, SPEC)
  checkpoints.save(RunState(saved, Snapshot(), {}), 3)
  checkpoints.wait()
  learner = training.Learner(mesh, SPEC, fresh, None, None, None, None, offload=False)
  found = learner.restore(checkpoints, 9, refuse)
  checkpoints.close()
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(fresh.opt_state))
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(fresh.params))
  for leaf, wanted in zip(*map(jax.tree.leaves, (found.state, saved)), strict=True):
    np.testing.assert_array_equal(leaf, wanted)


def test_samplers_come_back_to_the_bit(directory):
  weights = init(SPEC, jax.random.key(3))
  results = [example.answer(example.order(order_id)) for order_id in (4, 7)]
  results[1].worker = 2
  checkpoints = Checkpoints(directory, SPEC)
  snapshot = Snapshot(results, {2: weights, 3: jax.tree.map(lambda x: x + 1, weights)})
  checkpoints.save(RunState(state(3), snapshot, {}, reference="abc"), 3)
  checkpoints.close()
  restored = restore(directory)
  assert restored.reference == "abc"
  assert [(r.order_id, r.worker) for r in restored.samplers.results] == [(4, 0), (7, 2)]
  for left, right in zip(results, restored.samplers.results, strict=True):
    example.same_rollouts(left.rollouts, right.rollouts)
  assert set(restored.samplers.weights) == {2, 3}
  jax.tree.map(np.testing.assert_array_equal, restored.samplers.weights[2], weights)


def test_which_prompts_were_asked_and_solved_comes_back_to_the_bit(directory):
  prompts = {"position": 7, "rounds": {"3": [[4, [2, 0]], [6, [1]]]}}
  rates = {
    "sums": np.random.default_rng(0).random(5, np.float32),
    "words": np.array([0.1], np.float32),
  }
  checkpoints = Checkpoints(directory, SPEC)
  checkpoints.save(RunState(state(3), Snapshot(), {}, prompts=prompts, rates=rates), 3)
  checkpoints.close()
  restored = restore(directory)
  assert restored.prompts == prompts and list(restored.rates) == list(rates)
  for task, expected in rates.items():
    assert restored.rates[task].dtype == np.float32
    assert restored.rates[task].tobytes() == expected.tobytes()


def test_the_adapters_that_rollouts_began_with_come_back(directory):
  checkpoints = Checkpoints(directory, SPEC)
  checkpoints.save(run(1), 1)
  checkpoints.save(run(2, proximal={"w": jnp.arange(3.0)}), 2)
  checkpoints.close()
  assert restore(directory, at_most=1).proximal is None
  np.testing.assert_array_equal(restore(directory).proximal["w"], np.arange(3.0))


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


DAMAGE = {
  "other bytes": flip,
  "bytes, not": lambda path: path.write_bytes(path.read_bytes()[:-1]),
  "missing": Path.unlink,
}


@pytest.mark.parametrize("what", DAMAGE)
@pytest.mark.parametrize(
  "pattern", ["state/**/d/*", "about/metadata", "state/_METADATA", "metrics/metrics"]
)
def test_damage_is_found_and_the_newest_good_one_taken(what, pattern, directory):
  fill(directory, (2, 4, 6), metrics=lambda step: {"reward/mean": 0.5})
  victim = max((directory / "6").glob(pattern), key=lambda path: path.stat().st_size)
  DAMAGE[what](victim)
  found = []
  restored = restore(directory, set_aside=lambda *args: found.append(args))
  assert restored.state.step == 4
  ((place, problem),) = found
  assert what in problem and str(victim.relative_to(directory / "6")) in problem
  assert place == directory.parent / "damaged" / "6"
  if what != "missing":  # the evidence is there as it was found
    assert (place / victim.relative_to(directory / "6")).is_file()
  assert fill(directory, (6,)) == {2, 4, 6}
  (directory / "6" / manifest.NAME).unlink()
  assert restore(directory, set_aside=lambda *args: found.append(args)).state.step == 4
  assert found[1][0] == directory.parent / "damaged" / "6.1" and manifest.NAME in found[1][1]


@pytest.mark.parametrize("text", ["", "[]", "null", '{"a": 3}', '{"a": ["x", "y"]}'])
def test_a_manifest_of_another_shape_is_damage(text, directory):
  fill(directory, (2, 4))
  (directory / "4" / manifest.NAME).write_text(text)
  found = []
  assert restore(directory, set_aside=lambda *args: found.append(args)).state.step == 2
  assert "cannot be read" in found[0][1]


def test_older_metrics_that_are_no_json_do_not_stand_in_the_way(directory):
  fill(directory, (2, 4), metrics=lambda step: {"reward/mean": 0.5})
  (directory / "2" / "metrics" / "metrics").write_bytes(b"")
  unended = directory / "6.orbax-checkpoint-tmp" / "metrics"  # killed in the middle of a save
  unended.mkdir(parents=True)
  (unended / "metrics").write_bytes(b"{")
  assert restore(directory, read_only=True).state.step == 4
  found = []
  assert restore(directory, set_aside=lambda *args: found.append(args)).state.step == 4
  ((place, problem),) = found
  assert place == directory.parent / "damaged" / "2" and "metrics/metrics" in problem
  (directory / "4" / "metrics" / "metrics").write_bytes(b"{")
  with pytest.raises(CheckpointError, match="every checkpoint in .* is damaged"):
    restore(directory, set_aside=lambda *args: None, read_only=True)
  with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
    restore(directory, set_aside=lambda *args: None)


def test_if_none_is_good_nothing_begins_again(directory):
  fill(directory, (2, 4))
  for step in ("2", "4"):
    flip(directory / step / "about" / "metadata")
  with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
    restore(directory, set_aside=lambda *args: None)
  assert {path.name for path in (directory.parent / "damaged").iterdir()} == {"2", "4"}


def test_a_reader_passes_over_damage_and_changes_nothing(directory):
  fill(directory, (2, 4))
  flip(directory / "4" / "about" / "metadata")
  (directory / "6.orbax-checkpoint-tmp").mkdir()  # the run is saving it
  before, found = sorted(directory.parent.rglob("*")), []
  aside = lambda *args: found.append(args)
  assert restore(directory, set_aside=aside, read_only=True).state.step == 2
  assert found[0][0] == directory / "4"
  flip(directory / "2" / "about" / "metadata")
  with pytest.raises(CheckpointError, match="every checkpoint in .* is damaged"):
    restore(directory, set_aside=aside, read_only=True)
  assert sorted(directory.parent.rglob("*")) == before


def test_another_format_or_another_tree_is_refused(directory, monkeypatch):
  monkeypatch.setattr(checkpoint, "FORMAT", 3)
  fill(directory, (2,))
  monkeypatch.undo()
  with pytest.raises(CheckpointError, match="has format 3; this version reads format 2"):
    restore(directory)
  fill(directory, (3,))
  wider = TrainState(step=jnp.int32(0), params={"w": jnp.zeros(4)}, opt_state=())
  with pytest.raises(
    CheckpointError, match=r"params/w is float32\[3\] there and float32\[4\] here"
  ):
    restore(directory, like=wider)
  more = TrainState(step=jnp.int32(0), params={"v": jnp.zeros(4), "w": jnp.zeros(3)}, opt_state=())
  with pytest.raises(CheckpointError, match="params/v is missing there"):
    restore(directory, like=more)


FULL = """
import resource, sys
import jax.numpy as jnp
from tests.learner.test_checkpoint import *
directory = Path(sys.argv[1])
big = lambda step: RunState(
  TrainState(jnp.int32(step), {"w": jax.random.normal(jax.random.key(step), (1 << 18,))}, ()),
  Snapshot(), {})
checkpoints = Checkpoints(directory, SPEC)
checkpoints.save(big(1), 1)
checkpoints.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
try:
  checkpoints.save(big(2), 2)
  checkpoints.wait()
except CheckpointError as error:
  print("REFUSED", error)
"""


def test_when_nothing_more_fits_the_last_good_one_stays(directory):
  """A limit on the size of files stands for a full disk: writing fails in the same place."""
  done = subprocess.run(
    [sys.executable, "-c", FULL, str(directory)],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert "REFUSED a checkpoint could not be written" in done.stdout, done.stderr
  like = TrainState(jnp.int32(0), {"w": jnp.zeros(1 << 18)}, ())
  restored = restore(directory, like=like)
  assert restored.state.step == 1
  expected = jax.random.normal(jax.random.key(1), (1 << 18,))
  np.testing.assert_array_equal(restored.state.params["w"], expected)


def test_any_number_of_devices_restores_what_any_other_saved(tmp_path):
  """1 -> 4 and 8 -> 1, the devices of the latter in another process; where no device holds more of
  a learner than the others, from the start on."""
  checkpoints = Checkpoints(tmp_path / "one", SPEC)
  checkpoints.save(RunState(checkpointed_state(1), Snapshot(), {}), 5)
  checkpoints.close()
  flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8"
  environment = {**os.environ, "XLA_FLAGS": flags}
  done = subprocess.run(
    [sys.executable, "-m", "tests.learner.many_devices", str(tmp_path)],
    cwd=REPOSITORY,
    env=environment,
    capture_output=True,
    text=True,
    timeout=240,
  )
  assert done.returncode == 0, done.stderr
  spread, *held = json.loads(done.stdout.splitlines()[-1])
  assert spread == {"4": 4, "8": 8}
  for shares in held:  # parameters and two moments, an eighth of each, and what is not divided
    assert max(shares) == min(shares) < 3.2 / 8
  back = restored_on(1, tmp_path / "eight")
  jax.tree.map(np.testing.assert_array_equal, back, checkpointed_state(1))
