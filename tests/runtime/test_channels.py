"""Weights through shared memory or a directory: whole, exact, and nothing left behind."""

import os
import signal
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.runtime.example import SPEC, params
from vespo_jax.runtime import Place, PublishedPieces, SharedWeights
from vespo_jax.runtime.threads import KeptWeights
from vespo_jax.sampler import placement
from vespo_jax.weights.wire import Wire


def same_params(left, right):
  jax.tree.map(np.testing.assert_array_equal, left, right)


def test_weights_arrive_whole_and_bit_exact():
  writer = SharedWeights(SPEC)
  reader = SharedWeights(SPEC, fd=os.dup(writer.fd))
  assert reader.newest() == -1
  for version in (0, 3, 4):
    writer.publish(version, params(version))
    assert reader.newest() == version
    got, weights = reader.read(version, 1.0, exact=False)
    assert got == version
    same_params(weights, params(version))
  with pytest.raises(TimeoutError, match="version 5 or newer within 0.05 s; there are .3, 4."):
    reader.read(5, 0.05, exact=False)


def pieces(directory, slots=2):
  place = Place(str(directory), Wire(compress=True, chunk_bytes=512))
  return PublishedPieces(place, SPEC, placement.param_shardings(None, SPEC), slots)


CHANNELS = {
  "shared": lambda slots, directory: SharedWeights(SPEC, slots),
  "threads": lambda slots, directory: KeptWeights(slots),
  "pieces": lambda slots, directory: pieces(directory, slots),
}


@pytest.mark.parametrize("channel", CHANNELS)
def test_the_last_versions_are_kept_and_an_exact_one_is_never_another(channel, tmp_path):
  weights = CHANNELS[channel](3, tmp_path / "weights")
  for version in (0, 2, 4, 6):
    weights.publish(version, params(version))
  assert weights.read(2, 1.0, exact=False)[0] == 6
  for version in (2, 4, 6):
    got, kept = weights.read(version, 1.0, exact=True)
    assert got == version
    same_params(kept, params(version))
  with pytest.raises(LookupError, match="version 0 .* is gone; there are .2, 4, 6."):
    weights.read(0, 60.0, exact=True)
  with pytest.raises(TimeoutError, match="version 8"):
    weights.read(8, 0.05, exact=True)


@pytest.mark.parametrize("channel", CHANNELS)
def test_a_read_waits_for_its_version(channel, tmp_path):
  weights = CHANNELS[channel](2, tmp_path / "weights")
  weights.publish(0, params(0))
  timer = threading.Timer(0.2, weights.publish, (1, params(1)))
  timer.start()
  version, got = weights.read(1, 30.0, exact=True)
  timer.join()
  assert version == 1
  same_params(got, params(1))


def test_pieces_count_once_they_are_whole_and_are_read_while_others_are_removed(tmp_path):
  writer, reader = pieces(tmp_path / "weights"), pieces(tmp_path / "weights")
  assert reader.newest() == -1
  for version in (0, 4):
    writer.publish(version, params(version))
  half = tmp_path / "weights" / "version-8"  # as if process 1 of 2 had not written yet
  half.mkdir()
  whole = next((tmp_path / "weights" / "version-4").glob("*.json")).read_text()
  (half / "00000-of-00002.json").write_text(whole)
  assert reader.newest() == 4 and reader.read(0, 1.0, exact=False)[0] == 4
  with pytest.raises(TimeoutError, match="version 8 or newer within 0.05 s; there are .0, 4, 8."):
    reader.read(8, 0.05, exact=True)
  with pytest.raises(LookupError, match="version 2 of the weights is gone; there are .0, 4, 8."):
    reader.read(2, 60.0, exact=True)
  with pytest.raises(LookupError, match="version 2"):
    writer.weights(2)
  (tmp_path / "weights" / "mine.txt").write_text("no publication")
  writer.clear()  # another attempt at the run
  assert reader.newest() == -1
  writer.publish(2, params(2))
  same_params(writer.weights(2), params(2))
  data = next((tmp_path / "weights" / "version-2").glob("*.bin"))
  data.write_bytes(data.read_bytes()[:-1])
  with pytest.raises(ValueError, match="is damaged"):
    reader.read(2, 1.0, exact=True)
  writer.close()
  assert [path.name for path in (tmp_path / "weights").iterdir()] == ["mine.txt"]
  with pytest.raises(ValueError, match="slots=1"):
    pieces(tmp_path, slots=1)


def test_bfloat16_weights_travel_as_float32():
  small = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params())
  weights = SharedWeights(SPEC)
  weights.publish(0, small)
  _, got = weights.read(0, 1.0, exact=True)
  assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {np.dtype(np.float32)}
  same_params(got, jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), small))


def test_a_set_that_was_read_does_not_change_with_later_ones():
  weights = SharedWeights(SPEC)
  weights.publish(0, params(0))
  _, first = weights.read(0, 1.0, exact=True)
  for version in (1, 2):
    weights.publish(version, params(version))
  same_params(first, params(0))


def test_a_version_names_one_set():
  weights = SharedWeights(SPEC)
  weights.publish(4, params())
  for version in (3, 4):
    with pytest.raises(ValueError, match="not newer than version 4"):
      weights.publish(version, params())
  with pytest.raises(ValueError, match="slots=1"):
    SharedWeights(SPEC, slots=1)


@pytest.mark.parametrize("place", ["weights", "header"])
def test_torn_weights_are_never_accepted(place):
  weights = SharedWeights(SPEC)
  weights.publish(0, params(0))
  at = weights._layout.nbytes // 2 if place == "weights" else 1  # a bit of the version
  weights._memory[at] ^= 1
  with pytest.raises(TimeoutError):
    weights.read(0, 0.05, exact=False)


def test_what_is_read_while_it_is_overwritten_is_one_version():
  """Each version is one number everywhere, so that a mixture of two would show."""
  weights = SharedWeights(SPEC)
  constant = lambda version: jax.tree.map(lambda leaf: np.full_like(leaf, version), params())
  weights.publish(0, constant(0))
  stop = threading.Event()

  def write():
    version = 0
    while not stop.is_set():
      version += 1
      weights.publish(version, constant(version))

  writer = threading.Thread(target=write)
  writer.start()
  try:
    for _ in range(300):
      version, got = weights.read(0, 10.0, exact=False)
      assert {float(value) for leaf in jax.tree.leaves(got) for value in np.unique(leaf)} == {
        float(version)
      }
  finally:
    stop.set()
    writer.join()


def test_a_reader_killed_in_the_middle_harms_nobody_and_leaves_nothing():
  writer = SharedWeights(SPEC)
  assert os.fstat(writer.fd).st_nlink == 0  # a file without a name goes with its last user
  writer.publish(0, params(0))
  reader = subprocess.Popen(
    [
      sys.executable,
      "-c",
      "from vespo_jax import models\n"
      "from vespo_jax.runtime import SharedWeights\n"
      f"weights = SharedWeights(models.{SPEC!r}, fd={writer.fd})\n"
      "print('reading', flush=True)\n"
      "while True: weights.read(0, 10.0, exact=False)",
    ],
    pass_fds=[writer.fd],
    stdout=subprocess.PIPE,
    text=True,
  )
  assert reader.stdout.readline() == "reading\n"
  for version in range(1, 20):
    writer.publish(version, params(version))
    if version == 10:
      os.kill(reader.pid, signal.SIGKILL)
      reader.wait(10)
    same_params(writer.read(version, 1.0, exact=True)[1], params(version))
