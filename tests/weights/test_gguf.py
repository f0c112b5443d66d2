"""GGUF files: the numbers they stand for, and what of them is refused."""

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from vespo_jax import models
from vespo_jax.weights.gguf_file import read_header

ARCHITECTURES = ("llama", "qwen2", "qwen3")


def logits(path):
  spec, params, tokenizer = models.load(path)
  tokens = jnp.asarray([tokenizer.encode("What is the third letter?")])
  hidden, _ = models.forward(params, spec, tokens)
  return np.asarray(hidden @ models.head_table(params).T)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_file_is_the_model_that_the_directory_is(make_pair, architecture):
  """Seven storage types in one file; for Llama, rows of queries and keys in llama.cpp's order."""
  pair = make_pair(architecture)
  spec, params, _ = models.load(pair.write_gguf())
  expected_spec, expected, _ = models.load(pair.write_directory())
  assert spec == expected_spec
  jax.tree.map(np.testing.assert_array_equal, params, expected)
  np.testing.assert_array_equal(logits(pair.gguf), logits(pair.directory))


def test_order_of_rows_matters_here(make_pair):
  """The test above would not see a wrong order if these logits did not differ."""
  pair = make_pair("llama")
  right = logits(pair.write_gguf())
  name = "blk.0.attn_q.weight"
  pair.tensors[name] = pair.tensors[name][0][::-1], pair.tensors[name][1]
  assert np.abs(logits(pair.write_gguf()) - right).max() > 0.01


@pytest.mark.parametrize("kind", [Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K])
def test_k_quants_are_read(make_pair, kind):
  """The package cannot write them, so the bytes are made up: small, so that scales are finite."""
  pair = make_pair("qwen3", hidden_size=256)
  shape = pair.tensors["token_embd.weight"][0].shape[0], 256
  size = gguf.quants.quant_shape_to_byte_shape(shape, kind)
  data = np.random.default_rng(0).integers(0, 60, size, dtype=np.uint8)
  pair.tensors["token_embd.weight"] = data, kind
  _, params, _ = models.load(pair.write_gguf())
  want = gguf.quants.dequantize(data, kind)
  assert want.std() > 0
  np.testing.assert_array_equal(params["embedding"], want)


def test_types_and_defaults(make_pair):
  pair = make_pair("llama", head_dim=16)
  for key in ("attention.key_length", "attention.value_length", "vocab_size", "rope.freq_base"):
    del pair.keys[f"llama.{key}"]
  spec, params, _ = models.load(pair.write_gguf(), dtype=jnp.bfloat16)
  assert (spec.head_width, spec.rope_theta, spec.norm_epsilon) == (16, 10_000.0, 1e-5)
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.bfloat16.dtype}


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3_scaling_is_recognised_by_its_divisors(make_pair, factor):
  pair = make_pair("llama", rope_theta=500_000.0, head_dim=64)
  wavelengths = 2 * np.pi * 500_000.0 ** (np.arange(0, 64, 2) / 64)
  divisors = []
  for wavelength in wavelengths:  # as llama.cpp's converter writes them
    smooth = (8192 / wavelength - 1) / 3
    between = 1 / ((1 - smooth) / factor + smooth)
    divisors.append(1 if wavelength < 2048 else factor if wavelength > 8192 else between)
  assert len(set(divisors)) > 2
  pair.tensors["rope_freqs.weight"] = np.asarray(divisors, np.float32), Kind.F32
  spec, _, _ = models.load(pair.write_gguf())
  assert (spec.rope_scaling, spec.rope_factor, spec.rope_context) == ("llama3", factor, 8192)
  pair.tensors["rope_freqs.weight"] = np.ones(32, np.float32), Kind.F32
  assert models.load(pair.write_gguf())[0].rope_scaling == "default"
  divisors[12] *= 1.01
  pair.tensors["rope_freqs.weight"] = np.asarray(divisors, np.float32), Kind.F32
  with pytest.raises(ValueError, match="rope_freqs.weight"):
    models.load(pair.write_gguf())


@pytest.mark.parametrize(
  "change,message",
  [
    ({"general.architecture": "gemma2"}, "architecture 'gemma2'"),
    ({"llama.logit_scale": 0.5}, "llama.logit_scale"),
    ({"llama.expert_count": 8}, "llama.expert_count"),
    ({"llama.attention.sliding_window": 128}, "llama.attention.sliding_window"),
    ({"llama.attention.value_length": 16}, "llama.attention.value_length=16"),
    ({"llama.rope.dimension_count": 16}, "llama.rope.dimension_count=16"),
    ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}, "yarn"),
    ({"llama.block_count": None}, "llama.block_count is missing"),
    ({"llama.block_count": 3}, "missing tensors .*layers.2"),
    ({"llama.block_count": 1}, "unknown tensors .*blk.1"),
    ({"llama.feed_forward_length": 64}, "blk.0.ffn_gate.weight .* shape"),
    ({"llama.attention.head_count_kv": 3}, "kv_heads"),
    ({"split.count": 2}, "one of 2 parts"),
    ({"tokenizer.ggml.model": "llama"}, "tokenizer.ggml.model 'llama'"),
    ({"tokenizer.ggml.pre": "tekken"}, "tokenizer.ggml.pre 'tekken'"),
    ({"tokenizer.ggml.merges": None}, "tokenizer.ggml.merges is missing"),
    ({"tokenizer.ggml.merges": ["q qq"]}, "tokenizer.ggml.merges"),
    ({"tokenizer.ggml.eos_token_id": None}, "tokenizer.ggml.eos_token_id is missing"),
    ({"tokenizer.ggml.bos_token_id": 5000}, "tokenizer.ggml.bos_token_id=5000"),
    ({"tokenizer.chat_template": "{% for"}, "chat template"),
  ],
)
def test_metadata_that_is_not_understood_is_refused_by_key(make_pair, change, message):
  pair = make_pair("llama")
  pair.keys = {k: v for k, v in {**pair.keys, **change}.items() if v is not None}
  with pytest.raises(ValueError, match=message) as error:
    models.load(pair.write_gguf())
  assert "model.gguf" in str(error.value)


def test_unknown_missing_and_non_finite_tensors_are_refused_by_name(make_pair):
  pair = make_pair("llama")
  whole = dict(pair.tensors)
  pair.tensors["blk.0.attn_q.bias"] = np.zeros(128, np.float32), Kind.F32
  with pytest.raises(ValueError, match="unknown tensors .*: blk.0.attn_q.bias"):
    models.load(pair.write_gguf())
  pair.tensors = {k: v for k, v in whole.items() if k != "output_norm.weight"}
  with pytest.raises(ValueError, match="missing tensors .*: model.norm.weight"):
    models.load(pair.write_gguf())
  pair.tensors = whole | {"output_norm.weight": (np.full(64, np.nan, np.float32), Kind.F32)}
  with pytest.raises(ValueError, match="output_norm.weight .* not finite"):
    models.load(pair.write_gguf())
  pair.tensors = whole | {"output_norm.weight": (np.ones(64, np.int32), Kind.I32)}
  with pytest.raises(ValueError, match="output_norm.weight .* I32"):
    models.load(pair.write_gguf())
  pair.tensors = {k: v for k, v in whole.items() if k != "token_embd.weight"}
  with pytest.raises(ValueError, match="token_embd.weight is missing"):
    models.load(pair.write_gguf())


def test_a_file_cut_anywhere_is_refused(make_pair):
  path = make_pair("llama").write_gguf()
  data = path.read_bytes()
  first = min(tensor.start for tensor in read_header(path).tensors.values())
  for length in [0, 3, 4, 8, 20, 50, 999, first - 100, first - 1]:
    path.write_bytes(data[:length])
    with pytest.raises(ValueError, match="model.gguf"):
      models.load(path)
  for length in (first + 1, len(data) - 33):
    path.write_bytes(data[:length])
    with pytest.raises(ValueError, match="truncated: .*weight ends at byte"):
      models.load(path)


@pytest.mark.parametrize(
  "old,new,message",
  [
    (b"blk.1.attn_q.weight", b"blk.0.attn_q.weight", "blk.0.attn_q.weight is in .* twice"),
    (b"llama.vocab_size", b"llama.block_coun", "llama.block_coun"),
    (b"llama.rope.dimension_count", b"llama.attention.key_length", "key_length twice"),
    (b"GGUF\x03\0\0\0", b"GGUF\x01\0\0\0", "version 1"),
    (b"GGUF\x03\0\0\0", b"GGUF\0\0\0\x03", "version 50331648"),
    (b"GGUF", b"GGML", "not a GGUF file"),
    (b"general.architecture\x08\0\0\0", b"general.architecture\x63\0\0\0", "corrupt"),
    (b"tokenizer.ggml.model", b"tokenizer.ggml.\xff\xff\xff\xff\xff", "corrupt"),
  ],
)
def test_corrupt_headers_are_refused(make_pair, old, new, message):
  path = make_pair("llama").write_gguf()
  data = path.read_bytes()
  assert old in data
  path.write_bytes(data.replace(old, new, 1))
  with pytest.raises(ValueError, match=message):
    models.load(path)


def corrupt_entry(path, name, *, offset=None, kind=None):
  """Overwrites fields of a matrix in the list of tensors: name, 2 axes, sizes, kind, offset."""
  data = bytearray(path.read_bytes())
  at = data.index(name) + len(name) + 4 + 2 * 8
  if kind is not None:
    data[at : at + 4] = kind.to_bytes(4, "little")
  if offset is not None:
    data[at + 4 : at + 12] = offset.to_bytes(8, "little")
  path.write_bytes(data)


def test_corrupt_tensor_entries_are_refused(make_pair):
  pair = make_pair("llama")
  corrupt_entry(pair.write_gguf(), b"blk.1.attn_q.weight", offset=0)
  with pytest.raises(ValueError, match="overlaps"):
    models.load(pair.gguf)
  corrupt_entry(pair.write_gguf(), b"blk.1.attn_q.weight", offset=2**60)
  with pytest.raises(ValueError, match="truncated: blk.1.attn_q.weight"):
    models.load(pair.gguf)
  corrupt_entry(pair.write_gguf(), b"blk.1.attn_q.weight", kind=99)
  with pytest.raises(ValueError, match="blk.1.attn_q.weight .* unknown ggml type 99"):
    models.load(pair.gguf)
  corrupt_entry(pair.write_gguf(), b"blk.1.attn_q.weight", kind=int(Kind.Q4_K))
  with pytest.raises(ValueError, match="blk.1.attn_q.weight .* blocks of 256"):
    models.load(pair.gguf)
