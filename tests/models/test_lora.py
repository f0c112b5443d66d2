"""LoRA: attached and merged are one model, only adapters learn, and PEFT's files hold them."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import MIXTURE
from safetensors.numpy import load_file, save_file

from vespo_jax import models, weights
from vespo_jax.models import lora
from vespo_jax.models.lora import LoraSettings

SETTINGS = LoraSettings(rank=3, alpha=6.0, targets="q_proj|v_proj|down_proj")
IDS = np.random.default_rng(0).integers(0, 61, (2, 7)).astype(np.int32)


def adapted(spec, settings=SETTINGS):
  """Adapters with a B that is not zero, so that they change something."""
  adapters = lora.init(spec, jax.random.key(1), settings)
  rng = np.random.default_rng(2)
  return jax.tree.map(lambda x: x + jnp.asarray(rng.normal(0, 0.1, x.shape), jnp.float32), adapters)


@functools.partial(jax.jit, static_argnums=1)
def hidden(params, spec):
  return models.forward(params, spec, IDS)[0]


@MIXTURE
def test_new_adapters_change_nothing(model):
  spec, base = model
  adapters = lora.init(spec, jax.random.key(1), SETTINGS)
  a = adapters["layers"]["query"]["a"]
  assert a.shape == (2, 24, 3) and 0.5 < np.abs(a).max() * np.sqrt(24) <= 1
  attached = lora.attach(base, adapters, SETTINGS)
  np.testing.assert_allclose(hidden(attached, spec), hidden(base, spec), atol=5e-6)


def test_attached_equals_merged_equals_the_formula(model):
  spec, base = model
  adapters = adapted(spec)
  merged = lora.merge(base, adapters, SETTINGS)
  query = adapters["layers"]["query"]
  np.testing.assert_allclose(
    merged["layers"]["query"][1],
    base["layers"]["query"][1] + 6.0 / 3 * np.asarray(query["a"][1]) @ np.asarray(query["b"][1]),
    rtol=1e-5,
    atol=1e-6,
  )
  attached = hidden(lora.attach(base, adapters, SETTINGS), spec)
  np.testing.assert_allclose(attached, hidden(merged, spec), atol=2e-4, rtol=1e-3)
  assert np.abs(np.asarray(attached - hidden(base, spec))).max() > 1e-2
  untouched = set(base["layers"]) - set(adapters["layers"])
  for name in untouched:
    assert merged["layers"][name] is base["layers"][name]


@MIXTURE
def test_the_gradient_is_that_of_the_merged_model(model):
  spec, base = model
  adapters = adapted(spec)
  by = lambda build: jax.jit(
    jax.grad(lambda a: jnp.sum(jnp.sin(hidden(build(base, a, SETTINGS), spec))))
  )(adapters)
  for (path, got), want in zip(
    jax.tree_util.tree_leaves_with_path(by(lora.attach)),
    jax.tree.leaves(by(lora.merge)),
    strict=True,
  ):
    scale = np.abs(want).max()
    np.testing.assert_allclose(got / scale, want / scale, atol=1e-3, err_msg=str(path))


def test_targets_are_a_pattern_of_hugging_face_names():
  dense = models.ModelSpec(61, 24, 3, 4, 2, 8, 40)
  named = lambda pattern: set(lora.targeted(dense, LoraSettings(2, 4.0, pattern)))
  assert named("mlp") == {"gate", "up", "down"}
  assert named(r"self_attn\.[qk]_proj$") == {"query", "key"}
  assert named(".") == set(lora.MODULES)
  with pytest.raises(ValueError, match="targets='lm_head'.*self_attn.q_proj"):
    named("lm_head")


def test_files_are_those_of_peft(model, tmp_path):
  spec, base = model
  adapters = adapted(spec)
  weights.save_adapters(tmp_path, adapters, SETTINGS)
  tensors = load_file(tmp_path / "adapter_model.safetensors")
  name = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
  np.testing.assert_array_equal(tensors[name], np.asarray(adapters["layers"]["query"]["a"][1]).T)
  config = json.loads((tmp_path / "adapter_config.json").read_text())
  assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 3, 6.0)
  loaded, settings = weights.load_adapters(tmp_path)
  jax.tree.map(np.testing.assert_array_equal, loaded, adapters)
  merged, again = lora.merge(base, adapters, SETTINGS), lora.merge(base, loaded, settings)
  jax.tree.map(np.testing.assert_array_equal, again, merged)
  for more in (
    {"use_rslora": True},
    {"use_dora": True},
    {"fan_in_fan_out": True},
    {"alpha_pattern": {"q_proj": 64}},
    {"rank_pattern": {"q_proj": 8}},
    {"target_modules": "all-linear"},
    {"layers_to_transform": [0]},
    {"layer_replication": [[0, 2]]},
    {"alora_invocation_tokens": [1, 2]},
    {"use_qalora": True},
    {"init_lora_weights": "pissa"},
    {"peft_type": "ADALORA"},
    {"bias": "all"},
    {"lora_bias": True},
    {"what_comes_next_year": 1},
  ):
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **more}))
    with pytest.raises(ValueError, match=f"{min(more)}=.* is not supported"):
      weights.load_adapters(tmp_path)
  off = {"use_rslora": False, "use_dora": False, "fan_in_fan_out": False, "alpha_pattern": {}}
  off |= {"layers_to_transform": None, "init_lora_weights": True, "megatron_core": "megatron.core"}
  off |= {"lora_dropout": 0.05, "base_model_name_or_path": "x", "qalora_group_size": 16}
  (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **off}))
  assert weights.load_adapters(tmp_path)[1] == settings

  save_file({k: v for k, v in tensors.items() if k != name}, tmp_path / "adapter_model.safetensors")
  with pytest.raises(ValueError, match="missing tensors.*layers.1.self_attn.q_proj.lora_A"):
    weights.load_adapters(tmp_path)
  save_file({**tensors, "other": np.zeros(2)}, tmp_path / "adapter_model.safetensors")
  with pytest.raises(ValueError, match="other"):
    weights.load_adapters(tmp_path)
  far = name.replace("layers.1.", f"layers.{10**15}.")
  save_file({**tensors, far: tensors[name]}, tmp_path / "adapter_model.safetensors")
  with pytest.raises(ValueError, match="too few for 1000000000000001 layers"):
    weights.load_adapters(tmp_path)
  (tmp_path / "adapter_model.safetensors").write_bytes(b"{" * 20)
  with pytest.raises(ValueError, match="adapter_model.safetensors is not readable"):
    weights.load_adapters(tmp_path)
  (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
  with pytest.raises(ValueError, match="target_modules is missing in .*adapter_config.json"):
    weights.load_adapters(tmp_path)
  (tmp_path / "adapter_config.json").write_text("{")
  with pytest.raises(ValueError, match="adapter_config.json is not readable JSON"):
    weights.load_adapters(tmp_path)
  (tmp_path / "adapter_config.json").unlink()
  with pytest.raises(FileNotFoundError, match="adapter_config.json"):
    weights.load_adapters(tmp_path)


@pytest.mark.parametrize("use", [lora.attach, lora.merge])
def test_adapters_of_fewer_layers_are_not_spread_over_all(use):
  spec = models.ModelSpec(61, 24, 3, 4, 2, 8, 40)
  first = jax.tree.map(lambda x: x[:1], adapted(spec))
  with pytest.raises(ValueError, match="adapters of 1 layers do not fit a model of 3"):
    use(models.init(spec, jax.random.key(0)), first, SETTINGS)
