"""Weights published by shards: from one layout to another, on eight fake devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import SingleDeviceSharding

from vespo_jax.weights import pieces, wire
from vespo_jax.weights.wire import Wire

HERE = Path(__file__).parent


@pytest.mark.slow
def test_a_sampler_of_another_layout_reads_what_a_learner_wrote(tmp_path):
  flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8"
  done = subprocess.run(
    [sys.executable, str(HERE / "resharding.py"), str(tmp_path)],
    env=dict(os.environ, XLA_FLAGS=flags, JAX_PLATFORMS="cpu", PYTHONPATH=str(HERE.parents[1])),
    capture_output=True,
    text=True,
    timeout=280,
  )
  assert done.returncode == 0, done.stderr
  ratios = json.loads(done.stdout.splitlines()[-1])
  plain, delta = "fsdp 4 x tensor 2, {}, compress=True", "delta, {}"
  for dtype in ("float32", "bfloat16"):
    assert ratios[delta.format(dtype)] < ratios[plain.format(dtype)] < 1


@given(
  st.lists(st.tuples(st.integers(0, 3), st.integers(1, 12), st.integers(1, 2)), max_size=4),
  st.integers(4, 400),
)
def test_a_part_is_cut_into_pieces_that_cover_it_once_and_are_small(sides, chunk_bytes):
  box = tuple((start, start + size) for start, size, _ in sides)
  parts = tuple(count for _, _, count in sides)
  shape = tuple(16 * count for count in parts)
  seen = np.zeros(shape, int)
  for part in wire.cut(box, shape, Wire(chunk_bytes=chunk_bytes), parts):
    inside = tuple(slice(start, stop) for start, stop in part)
    assert 0 < 4 * seen[inside].size <= chunk_bytes
    assert all(start // 16 == (stop - 1) // 16 for start, stop in part)  # for one reader
    seen[inside] += 1
  inside = tuple(slice(start, stop) for start, stop in box)
  assert np.all(seen[inside] == 1) and seen.sum() == seen[inside].size


def test_the_cost_of_one_device_is_the_model():
  here = SingleDeviceSharding(jax.devices()[0])
  like = {"a": np.zeros((6, 5)), "b": np.zeros(3)}
  shardings = {"a": here, "b": here}
  cost = wire.bytes_on_wire(like, shardings, shardings, Wire("bfloat16", chunk_bytes=20))
  assert cost == {
    "written": 66, "written_per_device": 66, "read": 66, "read_per_device": 66, "pieces": 4
  }  # fmt: skip


@pytest.mark.parametrize("wrong", [{"dtype": "float16"}, {"chunk_bytes": 0}])
def test_no_such_wire(wrong):
  with pytest.raises(ValueError, match="no such wire"):
    Wire(**wrong)


def test_a_piece_beyond_its_array_is_refused(tmp_path):
  pieces.write(tmp_path, 1, {"w": jax.numpy.ones((4, 4))}, Wire())
  path = tmp_path / "00000-of-00001.json"
  about = json.loads(path.read_text())
  about["pieces"]["w"][0][0] = [[0, 1 << 40], [0, 4]]
  path.write_text(json.dumps(about))
  with pytest.raises(ValueError, match="no publication of weights: a piece of w"):
    pieces.open_publication(tmp_path)
