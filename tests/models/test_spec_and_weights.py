"""Specs, parameter trees and Hugging Face directories."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vespo_jax import models
from vespo_jax.tokenizers import byte_tokenizer


def test_parameter_layout_is_pinned():
  """Renaming a parameter breaks checkpoints; if it is meant, change this list with it."""
  spec = models.ModelSpec(10, 8, 2, 2, 1, 4, 16, qk_norm=True, qkv_bias=True, tied_embeddings=False)
  layout = {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(models.abstract(spec))
  }
  assert layout == {
    "embedding": (10, 8),
    "final_norm": (8,),
    "head": (10, 8),
    "layers/attention_norm": (2, 8),
    "layers/down": (2, 16, 8),
    "layers/gate": (2, 8, 16),
    "layers/key": (2, 8, 4),
    "layers/key_bias": (2, 4),
    "layers/key_norm": (2, 4),
    "layers/mlp_norm": (2, 8),
    "layers/output": (2, 8, 8),
    "layers/query": (2, 8, 8),
    "layers/query_bias": (2, 8),
    "layers/query_norm": (2, 4),
    "layers/up": (2, 8, 16),
    "layers/value": (2, 8, 4),
    "layers/value_bias": (2, 4),
  }
  assert models.count(spec) == sum(np.prod(shape) for shape in layout.values())


@pytest.mark.parametrize("field,value", [("kv_heads", 3), ("head_width", 7), ("layers", 0)])
def test_impossible_specs_are_refused_by_field(field, value):
  sizes = dict(vocab_size=8, width=8, layers=1, heads=4, kv_heads=2, head_width=8, mlp_width=8)
  with pytest.raises(ValueError, match=field):
    models.ModelSpec(**{**sizes, field: value})


def saved(model, tmp_path, **kwargs):
  spec, _ = model
  tokenizer = byte_tokenizer()
  spec = models.ModelSpec(**{**spec.__dict__, "vocab_size": tokenizer.vocab_size})
  params = models.init(spec, jax.random.key(1))
  models.save(tmp_path, spec, params, tokenizer, **kwargs)
  return spec, params


def test_round_trip_is_bit_exact(model, tmp_path):
  spec, params = saved(model, tmp_path)
  loaded_spec, loaded, tokenizer = models.load(tmp_path)
  assert loaded_spec == spec
  jax.tree.map(np.testing.assert_array_equal, loaded, params)
  assert tokenizer.encode_prompt("1 + 2") == byte_tokenizer().encode_prompt("1 + 2")


def test_files_hold_the_tensors_that_transformers_expects(model, tmp_path):
  """The other library's names and its [out, in] kernels, which a round trip does not see."""
  spec, params = saved(model, tmp_path)
  tensors = load_file(tmp_path / "model.safetensors")
  names = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
  }
  for ours, theirs in names.items():
    if ours not in params["layers"]:  # experts' names are the parity suite's
      continue
    stored = tensors[f"model.layers.1.{theirs}.weight"]
    np.testing.assert_array_equal(stored, params["layers"][ours][1].T, err_msg=ours)
  np.testing.assert_array_equal(tensors["model.embed_tokens.weight"], params["embedding"])
  assert ("lm_head.weight" in tensors) == (not spec.tied_embeddings)
  assert ("model.layers.0.self_attn.q_proj.bias" in tensors) == spec.qkv_bias
  assert ("model.layers.0.self_attn.q_norm.weight" in tensors) == spec.qk_norm


def test_what_old_configs_leave_out_follows_from_the_rest():
  config = dict(model_type="llama", vocab_size=8, hidden_size=48, num_hidden_layers=1)
  config |= dict(num_attention_heads=6, intermediate_size=8, rms_norm_eps=1e-5, rope_theta=1e4)
  spec = models.ModelSpec.from_hf_config(config)
  assert (spec.kv_heads, spec.head_width, spec.tied_embeddings) == (6, 8, False)


def test_bfloat16_storage_rounds_once(model, tmp_path):
  _, params = saved(model, tmp_path, dtype=jnp.bfloat16)
  _, loaded, _ = models.load(tmp_path)
  want = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), params)
  jax.tree.map(np.testing.assert_array_equal, loaded, want)


def test_new_rope_layout_is_read(model, tmp_path):
  spec, _ = saved(model, tmp_path)
  path = tmp_path / "config.json"
  config = json.loads(path.read_text())
  scaling = config.pop("rope_scaling", {"rope_type": "default"})
  config["rope_parameters"] = {**scaling, "rope_theta": config.pop("rope_theta")}
  path.write_text(json.dumps(config))
  assert models.load(tmp_path)[0] == spec


@pytest.mark.parametrize(
  "change,message",
  [
    ({"model_type": "gpt2"}, "model_type 'gpt2'"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type='yarn'"),
    ({"hidden_act": "gelu"}, "hidden_act"),
    ({"sliding_window": 8, "use_sliding_window": True}, "use_sliding_window"),
    ({"layer_types": ["sliding_attention"]}, "layer_types"),
    ({"mlp_bias": True}, "mlp_bias"),
    ({"hidden_size": 32}, "shape"),
  ],
)
def test_what_cannot_be_computed_exactly_is_refused(model, tmp_path, change, message):
  saved(model, tmp_path)
  path = tmp_path / "config.json"
  config = {**json.loads(path.read_text()), **change}
  path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
  with pytest.raises(ValueError, match=message):
    models.load(tmp_path)


def test_a_stored_head_of_a_tied_model_is_its_embedding_or_refused(tmp_path):
  spec = models.ModelSpec(300, 16, 1, 2, 1, 8, 24)
  params = models.init(spec, jax.random.key(0))
  models.save(tmp_path, spec, params, byte_tokenizer())
  path = tmp_path / "model.safetensors"
  tensors = load_file(path)
  embedding = tensors["model.embed_tokens.weight"]
  save_file({**tensors, "lm_head.weight": embedding}, path, metadata={"format": "pt"})
  jax.tree.map(np.testing.assert_array_equal, models.load(tmp_path)[1], params)
  for head in (np.nextafter(embedding, np.float32(1)), embedding[1:]):
    save_file({**tensors, "lm_head.weight": head}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lm_head.weight in .* is not the embedding"):
      models.load(tmp_path)
  config = json.loads((tmp_path / "config.json").read_text())
  (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
  save_file({**tensors, "lm_head.weight": embedding + 1}, path, metadata={"format": "pt"})
  np.testing.assert_array_equal(models.load(tmp_path)[1]["head"], embedding + 1)


@pytest.mark.parametrize("damage", ["unknown", "missing", "truncated"])
def test_damaged_weights_are_refused(model, tmp_path, damage):
  saved(model, tmp_path)
  path = tmp_path / "model.safetensors"
  tensors = load_file(path)
  if damage == "truncated":
    path.write_bytes(path.read_bytes()[:-100])
  elif damage == "unknown":
    save_file({**tensors, "extra": np.zeros(3)}, path)
  else:
    tensors.pop("model.norm.weight")
    save_file(tensors, path)
  expected = {"unknown": "extra", "missing": "model.norm.weight", "truncated": "safetensors"}
  with pytest.raises(ValueError, match=expected[damage]):
    models.load(tmp_path)


def test_missing_directories_and_files_are_named(tmp_path):
  with pytest.raises(FileNotFoundError, match="nowhere"):
    models.load(tmp_path / "nowhere")
  with pytest.raises(FileNotFoundError, match="config.json"):
    models.load(tmp_path)
