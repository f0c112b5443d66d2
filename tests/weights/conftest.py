import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.weights import gguf_writer
from vespo_jax.models import ModelSpec
from vespo_jax.weights.gguf_file import read_header
from vespo_jax.weights.gguf_tokenizer import read_tokenizer
from vespo_jax.weights.names import table


class Pair:
  """The same numbers as a GGUF file and as a Hugging Face directory."""

  def __init__(self, folder, architecture, **changes):
    self.gguf, self.directory = folder / "model.gguf", folder / "hf"
    tied = architecture != "qwen2"
    self.config = {**gguf_writer.CONFIG, "model_type": architecture, "tie_word_embeddings": tied}
    self.config |= changes
    self.spec = ModelSpec.from_hf_config(self.config)
    rng = np.random.default_rng(0)
    tensors = {row.name: 0.3 * rng.normal(size=row.shape) for row in table(self.spec)}
    self.tensors, self.numbers = gguf_writer.quantized(tensors)
    if architecture == "llama":
      for name, (data, kind) in self.tensors.items():
        heads = {"attn_q": self.spec.heads, "attn_k": self.spec.kv_heads}.get(name.split(".")[-2])
        if heads:
          self.tensors[name] = gguf_writer.permute(data, heads), kind
    self.keys = gguf_writer.metadata(self.config) | gguf_writer.TOKENIZER

  def write_gguf(self):
    gguf_writer.write(self.gguf, self.keys, self.tensors)
    return self.gguf

  def write_directory(self):
    self.directory.mkdir()
    save_file(self.numbers, self.directory / "model.safetensors")
    (self.directory / "config.json").write_text(json.dumps(self.config))
    read_tokenizer(read_header(self.write_gguf())).save(self.directory)
    return self.directory


@pytest.fixture
def make_pair(tmp_path):
  return lambda architecture, **changes: Pair(tmp_path, architecture, **changes)
