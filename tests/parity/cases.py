"""Small random models of every architecture, the same numbers for us and for `transformers`.

Weights are drawn by numpy from the name of each tensor, so that no file of them is needed.
"""

import json
import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from vespo_jax.models import ModelSpec
from vespo_jax.tokenizers import byte_tokenizer
from vespo_jax.weights.names import table

SIZES = {
  "vocab_size": 259,
  "hidden_size": 32,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 8,
  "intermediate_size": 48,
  "rms_norm_eps": 1e-6,
  "max_position_embeddings": 256,
  "hidden_act": "silu",
}
LLAMA3 = {
  "rope_type": "llama3",
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 16,  # so that 24 positions meet all three regimes
}
CASES = {  # Hugging Face configs as their publishers write them, old and new layouts of positions
  "llama2": {"model_type": "llama", "num_key_value_heads": 4},
  "llama3": {"model_type": "llama", "rope_theta": 500000.0, "rope_scaling": LLAMA3},
  "llama_linear": {
    "model_type": "llama",
    "rope_theta": 10000.0,
    "rope_scaling": {"type": "linear", "factor": 4.0},
  },
  "smollm2": {"model_type": "llama", "rope_theta": 100000.0, "tie_word_embeddings": True},
  "qwen2": {"model_type": "qwen2", "rope_theta": 1e6, "tie_word_embeddings": True},
  "qwen2.5": {"model_type": "qwen2", "rope_theta": 1e6, "use_sliding_window": False},
  "qwen3": {
    "model_type": "qwen3",
    "head_dim": 16,  # wider than hidden_size / heads
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "tie_word_embeddings": True,
  },
  "qwen3_moe": {
    "model_type": "qwen3_moe",
    "rope_theta": 1e6,
    "moe_intermediate_size": 24,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
  },
  "qwen3_moe_unnormalised": {
    "model_type": "qwen3_moe",
    "rope_theta": 1e6,
    "moe_intermediate_size": 24,
    "num_experts": 4,
    "num_experts_per_tok": 3,
    "norm_topk_prob": False,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
  },
  "mixtral": {
    "model_type": "mixtral",
    "rope_theta": 1e6,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": None,
  },
}


def hf_config(name):
  return {**SIZES, "tie_word_embeddings": False, **CASES[name]}


def write_model(directory: Path, name: str) -> dict[str, np.ndarray]:
  """Writes the model as a Hugging Face directory; returns its tensors."""
  config = hf_config(name)
  tensors = {}
  for row in table(ModelSpec.from_hf_config(config)):
    rng = np.random.default_rng(zlib.crc32(row.name.encode()))
    noise = rng.normal(size=row.shape).astype(np.float32)
    if "norm" in row.name:
      tensors[row.name] = 1 + 0.1 * noise
    else:
      tensors[row.name] = noise * np.float32(1.0 if "embed" in row.name else 0.25)
  directory.mkdir(parents=True, exist_ok=True)
  save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
  (directory / "config.json").write_text(json.dumps(config))
  special = {"bos_token": "<bos>", "eos_token": "<eos>"}
  (directory / "tokenizer_config.json").write_text(json.dumps(special))
  byte_tokenizer().save(directory)
  return tensors


def tokens(rows=2, width=24):
  return np.random.default_rng(0).integers(3, 259, (rows, width)).astype(np.int32)
