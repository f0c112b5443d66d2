"""Run by test_pieces.py in a process with eight fake devices; prints what was measured."""

import json
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vespo_jax import models, sharding
from vespo_jax.weights import pieces
from vespo_jax.weights import wire as wires
from vespo_jax.weights.wire import Wire

SPEC = models.ModelSpec(
  vocab_size=512, width=64, layers=4, heads=8, kv_heads=4, head_width=16, mlp_width=256
)
CHUNK = 1 << 13
NAME = "00000-of-00001"
place, measured = Path(sys.argv[1]), {}


def layout(sizes, devices):
  shape = [sizes.get(axis, 1) for axis in sharding.MESH_AXES]
  types = (jax.sharding.AxisType.Auto,) * len(shape)
  mesh = jax.make_mesh(shape, sharding.MESH_AXES, devices=devices, axis_types=types)
  return sharding.param_shardings(mesh, SPEC)


def like(shardings, dtype=jnp.float32):
  return jax.tree.map(
    lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=s),
    models.abstract(SPEC),
    shardings,
  )


assert jax.device_count() == 8, "start me with XLA_FLAGS=--xla_force_host_platform_device_count=8"
LEARNERS = {
  "fsdp 4 x tensor 2": layout({"fsdp": 4, "tensor": 2}, jax.devices()),
  "data 4 x fsdp 2": layout({"data": 4, "fsdp": 2}, jax.devices()),
}
SAMPLER = layout({"tensor": 4}, jax.devices()[4:])
whole = models.init(SPEC, jax.random.key(0))
size = sum(leaf.nbytes for leaf in jax.tree.leaves(whole))

for name, learner in LEARNERS.items():
  params = sharding.place(whole, learner)
  for wire in (
    Wire(compress=False, chunk_bytes=CHUNK),
    Wire(chunk_bytes=CHUNK),
    Wire("bfloat16", chunk_bytes=CHUNK),
  ):
    directory = place / f"{name}, {wire.dtype}, {wire.compress}"
    written = pieces.write(directory, 3, params, wire, parts=wires.parts_of(whole, SAMPLER))
    publication = pieces.open_publication(directory)
    found, got = pieces.read(publication, like(SAMPLER))
    expected = jax.tree.map(
      lambda leaf, w=wire: np.asarray(leaf.astype(w.dtype).astype(jnp.float32)), whole
    )
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, found), expected)
    assert all(jax.tree.leaves(jax.tree.map(lambda x, s: x.sharding == s, found, SAMPLER)))
    # every element once, although copies of it are on several devices
    raw = size * wires.DTYPES[wire.dtype].itemsize // 4
    assert written.raw_bytes == got.raw_bytes == raw and publication.version == 3
    assert (written.wire_bytes == raw) == (not wire.compress)
    assert max(written.peak_bytes, got.peak_bytes) <= 6 * CHUNK < size / 10
    cost = wires.bytes_on_wire(whole, learner, SAMPLER, wire)
    assert cost["written"] == raw and cost["pieces"] == written.pieces
    assert cost["written_per_device"] < 1.5 * raw / 8  # copies share the work
    assert raw / 4 <= cost["read_per_device"] < 1.1 * raw / 4  # a little is on all of them
    measured[f"{name}, {wire.dtype}, compress={wire.compress}"] = written.wire_bytes / raw

# what differs from the version before: exact in either type, and smaller
learner = LEARNERS["fsdp 4 x tensor 2"]
for dtype in ("float32", "bfloat16"):
  wire = Wire(dtype, chunk_bytes=CHUNK)
  cast = lambda tree, dtype=dtype: jax.tree.map(lambda leaf: leaf.astype(dtype), tree)
  noise = models.init(SPEC, jax.random.key(1))
  after = jax.tree.map(lambda a, b: a + 1e-4 * b, whole, noise)
  base, new = (cast(sharding.place(tree, learner)) for tree in (whole, after))
  written = pieces.write(place / f"delta {dtype}", 4, new, wire, base=(3, base))
  publication = pieces.open_publication(place / f"delta {dtype}")
  held = cast(sharding.place(whole, SAMPLER))
  found, got = pieces.read(publication, like(SAMPLER, dtype), base=(3, held))
  chex.assert_trees_all_equal(
    jax.tree.map(np.asarray, found), jax.tree.map(np.asarray, cast(after))
  )
  assert max(written.peak_bytes, got.peak_bytes) <= 6 * CHUNK
  measured[f"delta, {dtype}"] = written.wire_bytes / written.raw_bytes
  for wrong in (None, (2, held)):
    with pytest.raises(ValueError, match="what differs from version 3, which is not at hand"):
      pieces.read(publication, like(SAMPLER, dtype), base=wrong)

# damage, and what is not whole
directory = place / "fsdp 4 x tensor 2, float32, True"
data = bytearray((directory / f"{NAME}.bin").read_bytes())
data[len(data) // 2] ^= 1
(directory / f"{NAME}.bin").write_bytes(data)
with pytest.raises(
  ValueError, match=r"a piece of .* is damaged: .*00000-of-00001.bin, from byte \d+"
):
  pieces.read(pieces.open_publication(directory), like(SAMPLER))
(directory / f"{NAME}.bin").write_bytes(data[:-1])
with pytest.raises(ValueError, match="is damaged"):
  pieces.read(pieces.open_publication(directory), like(SAMPLER))
directory = place / "fsdp 4 x tensor 2, float32, False"
index = json.loads((directory / f"{NAME}.json").read_text())
index["pieces"]["layers/gate"].pop()
(directory / f"{NAME}.json").write_text(json.dumps(index))
with pytest.raises(ValueError, match="layers/gate lacks pieces"):
  pieces.read(pieces.open_publication(directory), like(SAMPLER))
(directory / f"{NAME}.json").rename(directory / "00000-of-00002.json")
with pytest.raises(FileNotFoundError, match="has not the pieces of all processes"):
  pieces.open_publication(directory)
(directory / "00000-of-00002.json").unlink()
(directory / f"{NAME}.json").write_text("{}")
with pytest.raises(ValueError, match="is no publication of weights"):
  pieces.open_publication(directory)
print(json.dumps(measured))
