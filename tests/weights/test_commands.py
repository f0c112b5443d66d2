"""`python -m vespo_jax.convert`, `sample` and `evaluate` on a GGUF file."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors

from vespo_jax import convert, evaluate, models, sample
from vespo_jax.weights import shards


def run(module, **options):
  return module.main([module.__name__, *(f"--{key}={value}" for key, value in options.items())])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_converted_model_is_the_same_model(make_pair, tmp_path, dtype):
  path, out = make_pair("llama").write_gguf(), tmp_path / "out"
  assert run(convert, model=path, out=out, format="hf", dtype=dtype) == 0
  spec, params, tokenizer = models.load(path, dtype=jnp.dtype(dtype))
  spec_again, again, tokenizer_again = models.load(out, dtype=jnp.dtype(dtype))
  assert spec_again == spec
  jax.tree.map(np.testing.assert_array_equal, again, params)
  assert tokenizer_again.stop_ids == tokenizer.stop_ids
  assert tokenizer_again.encode_prompt("1 + 1") == tokenizer.encode_prompt("1 + 1")
  assert tokenizer_again.chat.source == tokenizer.chat.source


def test_bad_input_is_one_message_and_exit_code_2(make_pair, tmp_path, capsys):
  path, out = make_pair("llama").write_gguf(), tmp_path / "out"
  assert run(convert, model=tmp_path / "nowhere", out=out) == 2
  assert "no such model" in capsys.readouterr().err
  assert not out.exists()
  out.mkdir()
  (out / "notes.txt").touch()
  for occupied in (out, out / "notes.txt"):
    assert run(convert, model=path, out=occupied) == 2
    assert "is not an empty directory" in capsys.readouterr().err
  assert [file.name for file in out.iterdir()] == ["notes.txt"]
  for wrong in ({"format": "gguf"}, {"dtype": "float8"}):
    with pytest.raises(SystemExit) as error:
      run(convert, model=path, out=tmp_path / "new", **wrong)
    assert error.value.code == 2


def test_a_model_that_cannot_be_read_or_written_is_one_message(
  make_pair, tmp_path, capsys, monkeypatch
):
  assert run(sample, model="x" * 300, prompt="1") == 2
  assert "name too long" in capsys.readouterr().err

  def save_file(*args, **kwargs):
    raise safetensors.SafetensorError("No space left on device")

  monkeypatch.setattr(shards, "save_file", save_file)
  path = make_pair("llama").write_gguf()
  assert run(convert, model=path, out=tmp_path / "full") == 2
  assert "model.safetensors cannot be written: No space left" in capsys.readouterr().err


def test_sampling_from_a_gguf_file(make_pair, capsys):
  path = make_pair("llama").write_gguf()
  options = dict(model=path, prompt="1 + 1", temperature=0, max_new_tokens=4)
  assert run(sample, **options) == 0
  chat = capsys.readouterr().out
  assert sample.main(["", *(f"--{k}={v}" for k, v in options.items()), "--raw"]) == 0
  raw = capsys.readouterr().out
  assert "log-prob" in chat and "log-prob" in raw and chat != raw
  path.write_bytes(path.read_bytes()[:-64])
  assert run(sample, **options) == 2
  assert "truncated" in capsys.readouterr().err


@pytest.mark.slow
def test_a_gguf_file_and_its_converted_model_are_evaluated_the_same(make_pair, tmp_path, capsys):
  path, out = make_pair("llama").write_gguf(), tmp_path / "out"
  assert run(convert, model=path, out=out, format="hf") == 0
  options = {"task": "reasoning_gym/chain_sum", "test_size": 4, "data_dir": tmp_path / "data"}
  options |= {"out": tmp_path / "records", "max_new_tokens": 4, "samples": 2}
  capsys.readouterr()
  found = []
  for model in (path, out):
    assert (
      evaluate.main(["", "--json", *(f"--{k}={v}" for k, v in options.items()), f"--model={model}"])
      == 0
    )
    found.append(json.loads(capsys.readouterr().out))
  assert found[0]["records"] == found[1]["records"]  # the same weights: the second one was read
  assert found[0]["problems"] == 4 and sum(found[0]["statuses"].values()) == 8


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_would_be_another_one_is_refused(seed, capsys):
  assert run(sample, model="nowhere", prompt="a", seed=seed) == 2
  assert f"--seed={seed} must be from 0 to 2**32 - 1" in capsys.readouterr().err
