"""Small GGUF files, written as llama.cpp's converter writes them."""

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from tokenizers import pre_tokenizers

NAMES = {
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.o_proj": "attn_output",
  "self_attn.q_norm": "attn_q_norm",
  "self_attn.k_norm": "attn_k_norm",
  "input_layernorm": "attn_norm",
  "post_attention_layernorm": "ffn_norm",
  "mlp.gate_proj": "ffn_gate",
  "mlp.up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down",
  "model.embed_tokens": "token_embd",
  "model.norm": "output_norm",
  "lm_head": "output",
}
KINDS = {  # every kind that the package can also write; what is not here is F32
  "attn_q": Kind.Q8_0,
  "attn_k": Kind.Q4_0,
  "attn_v": Kind.Q4_1,
  "attn_output": Kind.F16,
  "ffn_gate": Kind.BF16,
  "ffn_down": Kind.Q5_0,
  "token_embd": Kind.Q8_0,
}
CHATML = (
  "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|end|>", "<|im_start|>", "<|im_end|>"]
TOKENS = [*SPECIAL, "<think>", "<unused>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġt", "he"]
TOKENIZER = {
  "tokenizer.ggml.model": "gpt2",
  "tokenizer.ggml.pre": "smollm",
  "tokenizer.ggml.tokens": TOKENS,
  "tokenizer.ggml.token_type": [3, 3, 3, 4, 5, *[1] * 258],
  "tokenizer.ggml.merges": ["Ġ t", "h e"],
  "tokenizer.ggml.bos_token_id": 1,
  "tokenizer.ggml.eos_token_id": 0,
  "tokenizer.ggml.eot_token_id": 2,
  "tokenizer.ggml.padding_token_id": 0,
  "tokenizer.ggml.add_bos_token": False,
  "tokenizer.chat_template": CHATML,
}
CONFIG = {
  "vocab_size": len(TOKENS),
  "hidden_size": 64,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 32,
  "intermediate_size": 96,
  "rms_norm_eps": 1e-5,
  "rope_theta": 100_000.0,
  "max_position_embeddings": 512,
}


def metadata(config):
  """The keys of the architecture for a Hugging Face config."""
  arch = config["model_type"]
  keys = {
    "block_count": config["num_hidden_layers"],
    "context_length": config["max_position_embeddings"],
    "embedding_length": config["hidden_size"],
    "feed_forward_length": config["intermediate_size"],
    "attention.head_count": config["num_attention_heads"],
    "attention.head_count_kv": config["num_key_value_heads"],
    "attention.key_length": config["head_dim"],
    "attention.value_length": config["head_dim"],
    "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
    "rope.freq_base": config["rope_theta"],
    "rope.dimension_count": config["head_dim"],
    "vocab_size": config["vocab_size"],
  }
  return {"general.architecture": arch, **{f"{arch}.{key}": v for key, v in keys.items()}}


def permute(weight, heads):
  """As `LlamaModel.permute` of llama.cpp's converter."""
  halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
  return halves.swapaxes(1, 2).reshape(weight.shape)


def quantized(tensors):
  """GGUF name -> (bytes as the package wants them, kind), and the numbers they stand for."""
  stored, numbers = {}, {}
  for name, tensor in tensors.items():
    head, _, suffix = name.rpartition(".")
    layer, short = head.removeprefix("model.layers.").partition(".")[::2]
    prefix = f"blk.{layer}." if head.startswith("model.layers.") else ""
    ours = NAMES[short if prefix else head]
    kind = KINDS.get(ours, Kind.F32) if suffix == "weight" else Kind.F32
    data = gguf.quants.quantize(np.asarray(tensor, np.float32), kind)
    numbers[name] = gguf.quants.dequantize(data, kind)
    stored[f"{prefix}{ours}.{suffix}"] = (data, kind)
  return stored, numbers


def write(path, keys, tensors):
  """Writes the file; `tensors` are as `quantized` gives them."""
  writer = gguf.GGUFWriter(path, keys["general.architecture"])
  for key, value in keys.items():
    if key == "general.architecture":
      continue
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    add = {str: writer.add_string, list: writer.add_array, **kinds}[type(value)]
    add(key, value)
  for name, (data, kind) in tensors.items():
    writer.add_tensor(name, data, raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
