"""Hugging Face directories: shards and their index, stop tokens, and what of them is refused."""

import json
import os
import struct
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vespo_jax import models
from vespo_jax.tokenizers import byte_tokenizer
from vespo_jax.weights import shards

SPEC = models.ModelSpec(259, 16, 2, 2, 1, 8, 24, tied_embeddings=False)
INDEX = "model.safetensors.index.json"
NAME = "model.layers.0.input_layernorm.weight"  # beside others in the fourth of five shards


@pytest.fixture
def params():
  return models.init(SPEC, jax.random.key(3))


@pytest.fixture
def sharded(tmp_path, params, monkeypatch):
  """A directory of five shards; the embedding and the head are larger than one is to be."""
  monkeypatch.setattr(shards, "MAX_SHARD_BYTES", 8_000)
  models.save(tmp_path, SPEC, params, byte_tokenizer())
  return tmp_path


def edit(path, change):
  value = json.loads(path.read_text())
  change(value)
  path.write_text(json.dumps(value))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_shards_round_trip_bit_for_bit(sharded, params, dtype):
  params = jax.tree.map(lambda x: x.astype(dtype), params)
  models.save(sharded, SPEC, params, byte_tokenizer())
  files = sorted(path.name for path in sharded.glob("*.safetensors"))
  assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
  index = json.loads((sharded / INDEX).read_text())
  stored = {name: file for file in files for name in load_file(sharded / file)}
  assert index["weight_map"] == stored
  assert index["metadata"]["total_size"] == models.count(SPEC) * params["embedding"].dtype.itemsize
  for file in files:
    tensors = load_file(sharded / file)
    assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= 8_000
  spec, loaded, _ = models.load(sharded, dtype=dtype)
  assert spec == SPEC
  jax.tree.map(np.testing.assert_array_equal, loaded, params)
  assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype(dtype)}


def test_saving_again_leaves_nothing_of_the_old_model(sharded, params, monkeypatch):
  monkeypatch.undo()
  doubled = jax.tree.map(lambda x: 2 * x, params)
  models.save(sharded, SPEC, doubled, byte_tokenizer())
  assert [path.name for path in sharded.glob("model*")] == ["model.safetensors"]
  jax.tree.map(np.testing.assert_array_equal, models.load(sharded)[1], doubled)


def test_a_missing_shard_is_named(sharded):
  (sharded / "model-00002-of-00005.safetensors").unlink()
  with pytest.raises(FileNotFoundError, match="no model-00002-of-00005.safetensors"):
    models.load(sharded)


def test_a_tensor_in_two_shards_is_named(sharded):
  file = sharded / "model-00005-of-00005.safetensors"
  save_file(load_file(file) | {NAME: np.ones(16, np.float32)}, file)
  with pytest.raises(ValueError, match=f"{NAME} is in two files: .*00004-of.* and .*00005-of"):
    models.load(sharded)


def test_index_and_files_must_agree(sharded):
  index = json.loads((sharded / INDEX).read_text())
  edit(sharded / INDEX, lambda value: value["weight_map"].pop(NAME))
  with pytest.raises(ValueError, match=f"{NAME} in .*safetensors is not in {INDEX}"):
    models.load(sharded)
  index["weight_map"]["extra"] = index["weight_map"][NAME]
  (sharded / INDEX).write_text(json.dumps(index))
  with pytest.raises(ValueError, match="extra is not in .*safetensors"):
    models.load(sharded)
  index["weight_map"].pop("extra")
  index["weight_map"][NAME] = "model-00001-of-00005.safetensors"
  (sharded / INDEX).write_text(json.dumps(index))
  with pytest.raises(ValueError, match=f"{NAME} is not in .*00001"):
    models.load(sharded)


@pytest.mark.parametrize("file", ["../model.safetensors", "/model.safetensors", "model.bin", 3])
def test_an_index_names_only_safetensors_beside_it(sharded, file):
  edit(sharded / INDEX, lambda value: value["weight_map"].update({"model.norm.weight": file}))
  with pytest.raises(ValueError, match="model.norm.weight is in .* not a safetensors file"):
    models.load(sharded)


def test_a_truncated_shard_and_a_corrupt_index_are_named(sharded):
  path = sharded / "model-00005-of-00005.safetensors"
  path.write_bytes(path.read_bytes()[:-8])
  with pytest.raises(ValueError, match="00005-of.* is not a readable safetensors file"):
    models.load(sharded)
  for text, message in [("{", "not readable JSON"), ("[]", "JSON object"), ("{}", "weight_map")]:
    (sharded / INDEX).write_text(text)
    with pytest.raises(ValueError, match=f"{INDEX}.*{message}"):
      models.load(sharded)


@pytest.fixture
def single(tmp_path, params):
  models.save(tmp_path, SPEC, params, byte_tokenizer())
  return tmp_path


def test_tensors_are_checked_by_name(single):
  path = single / "model.safetensors"
  tensors = load_file(path)
  good, norm = dict(tensors), "model.norm.weight"
  for value, message in [
    (np.ones((2, 8), np.float32), rf"{norm} in .*model.safetensors has shape \(2, 8\)"),
    (np.ones(16, np.int8), f"{norm} in .*model.safetensors is I8"),
    (np.full(16, np.inf, np.float32), f"{norm} in .*model.safetensors is not finite"),
    (np.full(16, 1e39), f"{norm} in .*model.safetensors is not finite as float32"),
  ]:
    save_file({**good, norm: value}, path)
    with np.errstate(over="ignore"), pytest.raises(ValueError, match=message):
      models.load(single)
  save_file({**good, "a.rotary_emb.inv_freq": np.ones(4, np.float32)}, path)  # of old Llamas
  models.load(single)


@pytest.mark.parametrize(
  "data", [b"", b"\x08", b"\xff" * 64, b"\x10" + b"\0" * 7 + b"{not json here.}"]
)
def test_corrupt_files_are_named(single, data):
  (single / "model.safetensors").write_bytes(data)
  with pytest.raises(ValueError, match="model.safetensors is not a readable safetensors file"):
    models.load(single)


def test_a_name_twice_in_a_header_is_refused(single):
  path = single / "model.safetensors"
  data = path.read_bytes()
  (size,) = struct.unpack_from("<Q", data)
  header = data[8 : 8 + size].replace(b"layers.1.self_attn.q_norm", b"layers.1.self_attn.k_norm")
  path.write_bytes(data[:8] + header + data[8 + size :])
  with pytest.raises(ValueError, match="model.safetensors"):
    models.load(single)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_refused_with_the_reason(single, name):
  (single / "model.safetensors").rename(single / name)
  for path in (single, single / name):
    with pytest.raises(ValueError, match=f"{name} is a pickle, which runs code"):
      models.load(path)


def test_configs_are_checked_by_name(single):
  config = single / "config.json"
  text = config.read_text()
  edit(config, lambda value: value.pop("hidden_size"))
  with pytest.raises(ValueError, match="config.json: hidden_size is missing"):
    models.load(single)
  config.write_text(text[:-20])
  with pytest.raises(ValueError, match="config.json is not readable JSON"):
    models.load(single)
  config.write_text(text)
  (single / "model.safetensors").unlink()
  with pytest.raises(FileNotFoundError, match="no model.safetensors"):
    models.load(single)


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path):
  spec = models.ModelSpec(200, 16, 1, 2, 1, 8, 24)
  models.save(tmp_path, spec, models.init(spec, jax.random.key(0)), byte_tokenizer())
  with pytest.raises(ValueError, match="id 258, its model a vocabulary of 200"):
    models.load(tmp_path)


def test_stop_tokens_come_from_the_generation_config(single):
  generation = single / "generation_config.json"
  eos = byte_tokenizer().eos_id
  assert json.loads(generation.read_text()) == {"bos_token_id": 1, "eos_token_id": eos}
  edit(generation, lambda value: value.update(eos_token_id=[7, eos, 9], pad_token_id=None))
  spec, params, tokenizer = models.load(single)
  assert tokenizer.stop_ids == (eos, 7, 9)
  models.save(single, spec, params, tokenizer)
  assert models.load(single)[2].stop_ids == (eos, 7, 9)
  edit(single / "config.json", lambda value: value.update(eos_token_id=[5]))
  generation.unlink()
  assert models.load(single)[2].stop_ids == (eos, 5)


def test_what_else_a_generation_config_says_is_written_back(single):
  generation = single / "generation_config.json"
  more = {"temperature": 0.6, "top_p": 0.95, "pad_token_id": 0}
  edit(generation, lambda value: value.update(more))
  spec, params, tokenizer = models.load(single)
  models.save(single, spec, params, tokenizer)
  ids = {"bos_token_id": 1, "eos_token_id": byte_tokenizer().eos_id}
  assert json.loads(generation.read_text()) == {**more, **ids}


def test_run_directories(single, tmp_path_factory):
  run = tmp_path_factory.mktemp("run")
  (run / "metrics.jsonl").touch()
  with pytest.raises(FileNotFoundError, match="the run has not finished"):
    models.load(run)
  single.rename(run / "model")
  assert models.load(run)[0] == SPEC


def test_parameters_are_read_into_their_shardings(sharded):
  """On four devices, every one holding its part."""
  program = f"""
import jax, numpy as np
from vespo_jax import models, sharding
whole = models.load({str(sharded)!r})
shardings = sharding.param_shardings(sharding.make_mesh({{"fsdp": 4}}), whole[0])
_, params, _ = models.load({str(sharded)!r}, shardings=shardings)
jax.tree.map(np.testing.assert_array_equal, params, whole[1])
assert jax.tree.map(lambda x: x.sharding, params) == shardings
assert params["layers"]["gate"].addressable_shards[0].data.shape == (2, 4, 24)
print("ok")
"""
  flags = "--xla_force_host_platform_device_count=4"
  env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
  done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
  assert done.stdout == "ok\n", done.stderr
