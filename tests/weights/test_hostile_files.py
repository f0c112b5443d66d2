"""Model files made by somebody who means harm: refused with ValueError, in bounded memory."""

import copy
import json
import random
import shutil
import struct

import jax
import pytest

from vespo_jax import models
from vespo_jax.tokenizers import byte_tokenizer
from vespo_jax.weights import gguf_file, read_spec

SPEC = models.ModelSpec(259, 8, 1, 2, 1, 4, 8)
FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")
VALUES = (
  *(None, True, -1, 0, 3, 2**31, 2**63, 10**30, 1e308, float("nan"), float("inf")),
  *("", "x", "\x00", "{{ x", [], [1], ["a"], {}, {"a": 1}, [[]]),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  path = tmp_path_factory.mktemp("whole") / "model"
  models.save(path, SPEC, models.init(SPEC, jax.random.key(0)), byte_tokenizer())
  return path


@pytest.fixture
def model(whole, tmp_path):
  return shutil.copytree(whole, tmp_path / "model")


def edit(path, **changes):
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
  "changes,message",
  [
    ({"num_hidden_layers": 2**63}, "13 tensors, too few for 9223372036854775808 layers"),
    ({"num_hidden_layers": "1"}, "config.json: '<' not supported"),
    ({"num_attention_heads": 0}, "model is no model that can be read: ZeroDivisionError"),
    ({"hidden_size": 10**30}, "has shape .*, expected"),
    ({"rope_scaling": "llama3"}, "no model that can be read: ValueError|TypeError|config.json"),
  ],
)
def test_numbers_without_measure_are_refused_before_anything_is_made_of_them(
  model, changes, message
):
  edit(model / "config.json", **changes, head_dim=None)
  with pytest.raises(ValueError, match=message):
    models.load(model)


def test_experts_without_measure_are_refused(model):
  moe = {"model_type": "qwen3_moe", "num_experts": 2**62, "num_experts_per_tok": 2}
  edit(model / "config.json", **moe, moe_intermediate_size=8, norm_topk_prob=True)
  with pytest.raises(ValueError, match="too few for 1 layers of 4611686018427387904 experts"):
    models.load(model)


def test_an_id_without_measure_is_refused(model):
  """The library would take 4 bytes for every id below the largest."""
  path = model / "tokenizer.json"
  tokenizer = json.loads(path.read_text())
  tokenizer["model"]["vocab"]["h"] = 2**31
  path.write_text(json.dumps(tokenizer))
  with pytest.raises(ValueError, match="tokenizer.json has an id 2147483648"):
    models.load(model)


@pytest.mark.parametrize("name", FILES)
def test_brackets_without_end_are_refused(model, name):
  (model / name).write_text('{"a": ' + "[" * 100_000)
  with pytest.raises(ValueError, match=name):
    models.load(model)


def places(value, path=()):
  """The path of every value inside a JSON value; of a long list or map, of the first few."""
  items = value.items() if isinstance(value, dict) else enumerate(value)
  for key, inner in list(items)[:8]:
    yield (*path, key)
    if isinstance(inner, dict | list):
      yield from places(inner, (*path, key))


def test_whatever_a_json_file_says_it_is_read_or_refused(whole, tmp_path):
  """One value of one file is another one; the same 60 in every run."""
  rng = random.Random(0)
  refused = 0
  for i in range(60):
    model = shutil.copytree(whole, tmp_path / str(i))
    path = model / rng.choice(FILES)
    content = json.loads(path.read_text())
    *parents, last = rng.choice(list(places(content)))
    changed = copy.deepcopy(content)
    target = changed
    for key in parents:
      target = target[key]
    target[last] = rng.choice(VALUES)
    path.write_text(json.dumps(changed))
    try:
      models.load(model)
    except (ValueError, FileNotFoundError):
      refused += 1
  assert 10 < refused < 60


def gguf(*fields):
  return b"GGUF" + struct.pack("<IQQ", 3, 0, len(fields)) + b"".join(fields)


def field(key, kind, data):
  return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + data


ARRAY, UINT8, UINT32, STRING = 9, 0, 4, 8


@pytest.mark.parametrize(
  "data,message",
  [
    (gguf(field(b"a", ARRAY, struct.pack("<IQ", UINT8, 2**63))), "truncated or corrupt"),
    (gguf(field(b"a", ARRAY, struct.pack("<IQ", STRING, 2**63))), "truncated or corrupt"),
    (gguf(field(b"a", STRING, struct.pack("<Q", 2**64 - 1))), "truncated or corrupt"),
    (b"GGUF" + struct.pack("<IQQ", 3, 2**64 - 1, 0), "truncated or corrupt"),
    (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**64 - 1), "truncated or corrupt"),
    (gguf(field(b"a", ARRAY, struct.pack("<IQ", ARRAY, 1) * 9999)), "truncated or corrupt"),
    (gguf(field(b"general.alignment", UINT32, bytes(4))), "general.alignment=0"),
    (gguf(field(b"general.alignment", STRING, bytes(8))), "general.alignment=''"),
    (gguf(field(b"split.count", STRING, bytes(8))), "one of  parts"),
  ],
)
def test_headers_that_promise_too_much_are_refused(tmp_path, data, message):
  path = tmp_path / "model.gguf"
  path.write_bytes(data)
  for read in (read_spec, models.load):
    with pytest.raises(ValueError, match=message):
      read(path)


def test_a_header_that_is_really_that_long_is_refused(tmp_path, monkeypatch):
  """It would become many times as large in memory; here, at a thousandth of the size."""
  monkeypatch.setattr(gguf_file, "_MAX_HEADER_BYTES", 1 << 16)
  path = tmp_path / "model.gguf"
  for size, message in ((60_000, "architecture None"), (70_000, "ends at byte")):
    path.write_bytes(gguf(field(b"a", ARRAY, struct.pack("<IQ", UINT8, size) + bytes(size))))
    with pytest.raises(ValueError, match=message):
      models.load(path)


def test_a_spec_is_read_without_the_numbers(whole, tmp_path):
  model = shutil.copytree(whole, tmp_path / "model")
  assert read_spec(model) == SPEC
  (model / "model.safetensors").unlink()
  (model / "tokenizer.json").unlink()
  assert read_spec(model) == SPEC
