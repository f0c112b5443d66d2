"""Architectures of the paper's models, as their publishers' `config.json` has them.

With these a config can be examined without its weights. Their parameters are counted in a test.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vespo_jax.models import ModelSpec

SPECS = {
  # https://huggingface.co/meta-llama/Llama-3.2-3B-Instruct
  "Llama-3.2-3B-Instruct": ModelSpec(
    vocab_size=128_256,
    width=3072,
    layers=28,
    heads=24,
    kv_heads=8,
    head_width=128,
    mlp_width=8192,
    rope_theta=500_000.0,
    norm_epsilon=1e-5,
    qk_norm=False,
    context=131_072,
    rope_scaling="llama3",
    rope_factor=32.0,
    rope_low_factor=1.0,
    rope_high_factor=4.0,
    rope_context=8192,
  ),
  # https://huggingface.co/Qwen/Qwen3-8B-Base
  "Qwen3-8B-Base": ModelSpec(
    vocab_size=151_936,
    width=4096,
    layers=36,
    heads=32,
    kv_heads=8,
    head_width=128,
    mlp_width=12_288,
    rope_theta=1_000_000.0,
    tied_embeddings=False,
  ),
  # https://huggingface.co/Qwen/Qwen3-30B-A3B-Base
  "Qwen3-30B-A3B-Base": ModelSpec(
    vocab_size=151_936,
    width=2048,
    layers=48,
    heads=32,
    kv_heads=4,
    head_width=128,
    mlp_width=768,
    rope_theta=1_000_000.0,
    tied_embeddings=False,
    experts=128,
    active_experts=8,
  ),
}


@contextlib.contextmanager
def described(path: str) -> Iterator[str]:
  """`path` where it exists; else, if it ends in the name of a model of `SPECS`, a directory with
  the description of that model and no weights, for as long as the context lasts; else `path`."""
  spec = SPECS.get(Path(path).name)
  if not path or spec is None or Path(path).exists():
    yield path
    return
  with tempfile.TemporaryDirectory() as folder:
    (Path(folder) / "config.json").write_text(json.dumps(spec.to_hf_config()))
    yield folder
