"""Reading a model from a GGUF file, llama.cpp's format: metadata, tensors and tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from vespo_jax.models import ModelSpec
from vespo_jax.tokenizers import Tokenizer
from vespo_jax.types import Params
from vespo_jax.weights.gguf_file import GGUFFile, read_header, read_tensor
from vespo_jax.weights.gguf_tokenizer import read_tokenizer
from vespo_jax.weights.huggingface import check_vocabulary, read_spec
from vespo_jax.weights.source import Source, Stored, assemble

_ARCHITECTURES = ("llama", "qwen2", "qwen3")  # dense; the names are those of Hugging Face too
_TOP = {
  "token_embd.weight": "model.embed_tokens.weight",
  "output_norm.weight": "model.norm.weight",
  "output.weight": "lm_head.weight",
}
_LAYER = {
  "attn_norm": "input_layernorm",
  "attn_q": "self_attn.q_proj",
  "attn_k": "self_attn.k_proj",
  "attn_v": "self_attn.v_proj",
  "attn_output": "self_attn.o_proj",
  "attn_q_norm": "self_attn.q_norm",
  "attn_k_norm": "self_attn.k_norm",
  "ffn_norm": "post_attention_layernorm",
  "ffn_gate": "mlp.gate_proj",
  "ffn_up": "mlp.up_proj",
  "ffn_down": "mlp.down_proj",
}
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_ROPE_FACTORS = "rope_freqs.weight"

# Keys of the metadata below the name of the architecture -> keys of a Hugging Face config.
_CONFIG = {
  "block_count": "num_hidden_layers",
  "embedding_length": "hidden_size",
  "feed_forward_length": "intermediate_size",
  "attention.head_count": "num_attention_heads",
  "attention.head_count_kv": "num_key_value_heads",
  "attention.layer_norm_rms_epsilon": "rms_norm_eps",
  "attention.key_length": "head_dim",
  "context_length": "max_position_embeddings",
  "rope.freq_base": "rope_theta",
}
_CHECKED = ("attention.value_length", "rope.dimension_count", "vocab_size")
_ROPE = {"rope.scaling.type": "rope_type", "rope.scaling.factor": "factor"}
_OPTIONAL = ("attention.head_count_kv", "attention.key_length", "rope.freq_base")


def load(
  path: Path, dtype: jnp.dtype = jnp.float32, shardings: Params | None = None
) -> tuple[ModelSpec, Params, Tokenizer]:
  """The model in the GGUF file at `path`, dequantised, in Hugging Face's order of heads.

  Raises ValueError naming what is unsupported, unknown, missing, mis-shaped or corrupt in it.
  """
  file = read_header(path)
  spec = read_spec(read_config(file), path)
  tokenizer = read_tokenizer(file)
  check_vocabulary(spec, tokenizer, path)
  return spec, assemble(spec, _source(file, spec), dtype, shardings), tokenizer


def load_spec(path: Path) -> ModelSpec:
  """The architecture of the model in the GGUF file at `path`. Raises ValueError as `load`."""
  return read_spec(read_config(read_header(path)), path)


def read_config(file: GGUFFile) -> dict[str, Any]:
  """The metadata as a Hugging Face config.

  Raises ValueError naming an architecture or a key that is not known, or a key that is missing.
  """
  kind = file.metadata.get("general.architecture")
  if kind not in _ARCHITECTURES:
    known = ", ".join(_ARCHITECTURES)
    raise ValueError(f"architecture {kind!r} of {file.path} is not supported; known: {known}")
  prefix = f"{kind}."
  said = {k.removeprefix(prefix): v for k, v in file.metadata.items() if k.startswith(prefix)}
  unknown = set(said) - {*_CONFIG, *_CHECKED, *_ROPE}
  if unknown:
    raise ValueError(f"{file.path}: {prefix}{min(unknown)} is not supported")
  missing = set(_CONFIG) - set(said) - set(_OPTIONAL)
  if missing or "token_embd.weight" not in file.tensors:
    name = f"{prefix}{min(missing)}" if missing else "token_embd.weight"
    raise ValueError(f"{file.path}: {name} is missing")
  config = {name: said[key] for key, name in _CONFIG.items() if key in said}
  config.setdefault("rope_theta", 10_000.0)
  config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
  config["model_type"] = kind
  config["vocab_size"] = file.tensors["token_embd.weight"].shape[0]
  config["tie_word_embeddings"] = "output.weight" not in file.tensors
  expected = dict.fromkeys(_CHECKED, config["head_dim"]) | {"vocab_size": config["vocab_size"]}
  for key, value in expected.items():
    if said.get(key, value) != value:
      raise ValueError(f"{file.path}: {prefix}{key}={said[key]} is not supported, only {value}")
  if said.get("rope.scaling.type", "none") != "none":
    config["rope_scaling"] = {name: said[key] for key, name in _ROPE.items() if key in said}
  if _ROPE_FACTORS in file.tensors:
    config["rope_scaling"] = _llama3(file, config)
  return config


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
  """Rows of a query or key kernel [heads * H, D] from llama.cpp's order to Hugging Face's.

  For the architecture `llama` alone, llama.cpp rotates neighbouring pairs of a head (2i, 2i + 1)
  and stores the rows so, where Hugging Face rotates its halves (i, i + H / 2).
  """
  pairs = weight.reshape(heads, -1, 2, weight.shape[-1])
  return pairs.swapaxes(1, 2).reshape(weight.shape)


def _source(file: GGUFFile, spec: ModelSpec) -> Source:
  names = {_huggingface_name(name): name for name in file.tensors if name != _ROPE_FACTORS}
  heads = {}
  if file.metadata["general.architecture"] == "llama":
    heads = {"q_proj.weight": spec.heads, "k_proj.weight": spec.kv_heads}

  def read(wanted: Sequence[str]) -> Iterator[np.ndarray]:
    with file.path.open("rb") as stream:
      for name in wanted:
        tensor = read_tensor(stream, file.tensors[names[name]])
        permuted = heads.get(name.rpartition("self_attn.")[2])
        yield tensor if permuted is None else unpermute(tensor, permuted)

  stored = {name: Stored(raw, file.path, file.tensors[raw].shape) for name, raw in names.items()}
  return Source(file.path, stored, read)


def _huggingface_name(name: str) -> str:
  """The name of a tensor at Hugging Face, or the same name where there is none."""
  block = _BLOCK.fullmatch(name)
  if block is None or block[2] not in _LAYER:
    return _TOP.get(name, name)
  return f"model.layers.{block[1]}.{_LAYER[block[2]]}.{block[3]}"


def _llama3(file: GGUFFile, config: Mapping[str, Any]) -> dict[str, Any]:
  """The scaling of positions that a file holds only as divisors of the frequencies, [H / 2].

  Llama 3.1 to 3.3 are published with one set of numbers but for the factor, the last divisor; that
  they give the file's divisors is checked. Raises ValueError naming the tensor if they do not.
  """
  with file.path.open("rb") as stream:
    divisors = read_tensor(stream, file.tensors[_ROPE_FACTORS])
  if (divisors == 1).all():
    return {"rope_type": "default"}
  low, high, context, factor = 1.0, 4.0, 8192, float(divisors[-1])
  steps = np.arange(0, config["head_dim"], 2) / config["head_dim"]
  turns = context / (2 * np.pi * config["rope_theta"] ** steps)  # of a frequency in the context
  smooth = np.clip((turns - low) / (high - low), 0, 1)
  expected = 1 / ((1 - smooth) / factor + smooth)
  if divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=1e-4):
    raise ValueError(f"{_ROPE_FACTORS} in {file.path} is not the rope scaling of Llama 3")
  return {
    "rope_type": "llama3",
    "factor": factor,
    "low_freq_factor": low,
    "high_freq_factor": high,
    "original_max_position_embeddings": context,
  }
