import pytest

from vespo_jax.tokenizers import Tokenizer, byte_tokenizer


@pytest.mark.parametrize("text", ["12 + 34 = 46", "naïve ∑ 漢字\t\n", "", " <eos> "])
def test_bytes_round_trip(text):
  tokenizer = byte_tokenizer()
  ids = tokenizer.encode(text)
  assert tokenizer.decode(ids) == text
  assert len(ids) == len(text.encode())


def test_special_tokens_in_text_are_text():
  tokenizer = byte_tokenizer()
  assert tokenizer.eos_id not in tokenizer.encode("<eos>")


def test_prompt_and_response():
  tokenizer = byte_tokenizer()
  assert tokenizer.encode_prompt("1")[0] == tokenizer.bos_id
  assert tokenizer.encode_response("1")[-1] == tokenizer.eos_id
  assert tokenizer.decode(tokenizer.encode_response("46")) == "46"


def test_save_and_load(tmp_path):
  byte_tokenizer().save(tmp_path)
  loaded = Tokenizer.load(tmp_path, bos="<bos>", eos="<eos>")
  assert loaded.encode_prompt("é?") == byte_tokenizer().encode_prompt("é?")
  with pytest.raises(ValueError, match="<s>"):
    Tokenizer.load(tmp_path, bos="<s>", eos="<eos>")
  with pytest.raises(FileNotFoundError, match="tokenizer.json"):
    Tokenizer.load(tmp_path / "nowhere", bos=None, eos="<eos>")
