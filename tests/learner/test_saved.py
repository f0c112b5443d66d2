"""Saved rollouts: what is read is what was written, to the bit, or is refused by name."""

import dataclasses
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers as hf

from vespo_jax.learner import saved as saved_lib
from vespo_jax.learner.saved import Origin, RolloutWriter, SavedRollouts, vocabulary_digest
from vespo_jax.tokenizers import Tokenizer, byte_tokenizer
from vespo_jax.types import FINISH, REWARD_STATUS, Rollout

ORIGIN = Origin("vocabulary", "a task", "12ab", temperature=0.7, prompts=3, samples_per_prompt=4)
KEY = b"vespo_jax.rollouts"
ODD = np.array([0x80000000, 0x7FC00001, 0xFFC00000, 0x7F800000, 1, 0], np.uint32).view(np.float32)


def minibatch(update=1, **more):
  """Random rollouts, with empty ones, signed zeros, two NaNs, inf and a denormal among them."""
  rng = np.random.default_rng(update)
  rollouts = []
  for row in range(ORIGIN.prompts * ORIGIN.samples_per_prompt):
    n = int(rng.integers(0, 9)) if row else 6
    ids = lambda n: rng.integers(0, 2**31 - 1, n, dtype=np.int32)
    floats = lambda n: rng.normal(-1, 1, n).astype(np.float32)
    rollouts.append(
      Rollout(
        prompt_ids=ids(3),
        response_ids=ids(n),
        behaviour_logprobs=ODD if row == 0 else floats(n),
        plain_logprobs=floats(n),
        weight_versions=ids(n),
        finish=FINISH[row % 3],
        group_id=2**40 + row // ORIGIN.samples_per_prompt,
        sample_seed=2**32 - 1 - row,
        task="déjà vu",
        example_id=row,
        reward=[0.0, -0.0, 1 / 3, float("nan")][row % 4],
        reward_status=REWARD_STATUS[row % 5],
        **{name: make(n) for name, make in more.items()},
      )
    )
  return rollouts


def same(a, b):
  if isinstance(a, np.ndarray):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
  if isinstance(a, float):
    return type(b) is float and np.float64(a).tobytes() == np.float64(b).tobytes()
  return type(a) is type(b) and a == b


def assert_same(read, written):
  assert len(read) == len(written)
  for a, b in zip(read, written, strict=True):
    for field in dataclasses.fields(Rollout):
      assert same(getattr(a, field.name), getattr(b, field.name)), field.name


@pytest.mark.parametrize("list_values", [2**31 - 1, 20])  # 20: more than short lists can hold
def test_every_field_comes_back_to_the_bit(tmp_path, monkeypatch, list_values):
  monkeypatch.setattr(saved_lib, "_LIST_VALUES", list_values)
  writer = RolloutWriter(tmp_path, ORIGIN)
  written = {update: minibatch(update) for update in (1, 2, 3)}
  for update, rollouts in written.items():
    writer.write(update, rollouts)
  assert {file.name for file in tmp_path.iterdir()} == {f"00000{u}.parquet" for u in written}
  saved = SavedRollouts(tmp_path, ORIGIN, updates=3)
  for update, rollouts in written.items():
    assert_same(saved.read(update), rollouts)
  writer.write(2, written[3])  # a run that goes back writes over what it had
  assert_same(saved.read(2), written[3])


def test_optional_arrays_keep_their_axes_types_and_absence(tmp_path, monkeypatch):
  """Of fields with axes after the token axis, some of them missing in some rollouts."""

  @dataclasses.dataclass
  class Wider(Rollout):
    wide_ids: np.ndarray | None = None
    wide_logprobs: np.ndarray | None = None
    choices: np.ndarray | None = None
    never: np.ndarray | None = None

  import vespo_jax.learner.saved as module

  fields = {field.name: field for field in dataclasses.fields(Wider)}
  monkeypatch.setattr(module, "Rollout", Wider)
  monkeypatch.setattr(module, "_FIELDS", fields)
  rng = np.random.default_rng(0)
  written = []
  for row, rollout in enumerate(minibatch()):
    n = len(rollout.response_ids)
    extra = {} if row % 5 == 2 else {
      "wide_ids": rng.integers(0, 99, (n, 5), dtype=np.int32),
      "wide_logprobs": rng.normal(size=(n, 5)).astype(np.float32),
      "choices": rng.integers(0, 255, (n + 3, 2, 4)).astype(np.uint8),
    }  # fmt: skip
    written.append(Wider(**dataclasses.asdict(rollout), **extra))
  RolloutWriter(tmp_path, ORIGIN).write(1, written)
  for a, b in zip(SavedRollouts(tmp_path, ORIGIN, 1).read(1), written, strict=True):
    assert all(same(getattr(a, name), getattr(b, name)) for name in fields)
  written[1].wide_ids = np.zeros((2, 6), np.int32)
  with pytest.raises(ValueError, match="wide_ids differs"):
    RolloutWriter(tmp_path, ORIGIN).write(1, written)


def test_a_resumed_run_cuts_back(tmp_path):
  writer = RolloutWriter(tmp_path, ORIGIN)
  for update in range(1, 5):
    writer.write(update, minibatch(update))
  (tmp_path / "000005.tmp").write_bytes(b"half")
  RolloutWriter(tmp_path, ORIGIN).truncate(2)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["000001.parquet", "000002.parquet"]
  with pytest.raises(ValueError, match="lacks 1 of 3 minibatches: that of update 3"):
    SavedRollouts(tmp_path, ORIGIN, updates=3)
  with pytest.raises(ValueError, match=r"000003\.parquet"):
    SavedRollouts(tmp_path, ORIGIN, updates=2).read(3)


def test_a_crash_while_writing_leaves_the_earlier_file(tmp_path, monkeypatch):
  writer = RolloutWriter(tmp_path, ORIGIN)
  writer.write(1, minibatch(1))

  def half_way(table, path, **options):
    path.write_bytes(b"PAR1 and then the power went")
    raise KeyboardInterrupt

  monkeypatch.setattr(pq, "write_table", half_way)
  with pytest.raises(KeyboardInterrupt):
    writer.write(1, minibatch(2))
  assert_same(SavedRollouts(tmp_path, ORIGIN, 1).read(1), minibatch(1))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"vocabulary": "another"}, "its vocabulary is 'vocabulary', this run's is 'another'"),
    ({"task": "another"}, "its task is"),
    ({"problems": "34cd"}, "its problems is '12ab', this run's is '34cd'"),
    ({"temperature": 1.0}, "its temperature is 0.7"),
    ({"prompts": 4}, "its prompts is 3"),
    ({"samples_per_prompt": 6}, "its samples_per_prompt is 4, this run's is 6"),
  ],
)
def test_rollouts_of_another_origin_are_refused(tmp_path, change, message):
  RolloutWriter(tmp_path, ORIGIN).write(1, minibatch())
  with pytest.raises(ValueError, match=message) as refusal:
    SavedRollouts(tmp_path, dataclasses.replace(ORIGIN, **change), 1)
  assert str(tmp_path / "000001.parquet") in str(refusal.value)


def test_choices_of_experts_are_given_out_where_they_are_replayed(tmp_path):
  """(layers, of a token, experts); a policy that replays none must not be given any."""
  choices = lambda n: np.full((3 + n, 2, 4), 6, np.uint8)
  RolloutWriter(tmp_path / "with", ORIGIN).write(1, minibatch(expert_ids=choices))
  RolloutWriter(tmp_path / "without", ORIGIN).write(1, minibatch())
  assert_same(SavedRollouts(tmp_path / "with", ORIGIN, 1).read(1), minibatch())
  given = SavedRollouts(tmp_path / "with", ORIGIN, 1, (2, 4, 7)).read(1)
  assert_same(given, minibatch(expert_ids=choices))
  for experts in ((3, 4, 7), (2, 3, 7), (2, 4, 6)):
    with pytest.raises(ValueError, match=f"are not {experts[1]} of {experts[2]} in {experts[0]} l"):
      SavedRollouts(tmp_path / "with", ORIGIN, 1, experts)
  with pytest.raises(ValueError, match=r"000001.parquet has no choices .* moe.replay=R3"):
    SavedRollouts(tmp_path / "without", ORIGIN, 1, (2, 4, 7))


def test_what_is_no_minibatch_is_neither_written_nor_read(tmp_path):
  writer = RolloutWriter(tmp_path, ORIGIN)
  mixed = minibatch()
  mixed[5], mixed[8] = mixed[8], mixed[5]
  for rollouts in (minibatch()[:-1], mixed):
    with pytest.raises(ValueError, match="update 1 is not 3 groups of 4"):
      writer.write(1, rollouts)
  assert not list(tmp_path.iterdir())
  table = pq.read_table(writer.write(1, minibatch()))
  rewards = table.column_names.index("reward")
  one = table.set_column(rewards, table.field(rewards), [[1.0] * len(table)])
  renumbered = table.schema.metadata[KEY].replace(b'"update": 1', b'"update": 4')
  pq.write_table(table, tmp_path / "000002.parquet")
  pq.write_table(table.replace_schema_metadata(None), tmp_path / "000003.parquet")
  pq.write_table(one.replace_schema_metadata({KEY: renumbered}), tmp_path / "000004.parquet")
  saved = SavedRollouts(tmp_path, ORIGIN, 4)
  for update, message in {
    2: "its update is 1, this run's is 2",
    3: "its format is None, this run's is 2",
    4: "its rollouts are not those that were written",
  }.items():
    with pytest.raises(ValueError, match=f"00000{update}.parquet cannot be trained on: {message}"):
      saved.read(update)


def test_a_truncated_or_changed_file_is_refused_or_reads_the_same(tmp_path):
  """Whatever byte is changed, nothing but the rollouts that were written is ever returned."""
  file = RolloutWriter(tmp_path, ORIGIN).write(1, minibatch())
  saved, whole = SavedRollouts(tmp_path, ORIGIN, 1), file.read_bytes()
  for size in range(0, len(whole), 397):
    file.write_bytes(whole[:size])
    with pytest.raises(ValueError, match=r"000001\.parquet"):
      saved.read(1)
  refused, places = 0, range(0, len(whole), 13)
  for place in places:
    file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
    try:
      assert_same(saved.read(1), minibatch())
    except ValueError as error:
      assert "000001.parquet" in str(error)
      refused += 1
  assert refused > len(places) / 3  # the rest is what no reader needs: statistics, sizes


def test_a_small_file_of_many_rows_is_refused_before_they_are_read(tmp_path, monkeypatch):
  table = pq.read_table(RolloutWriter(tmp_path, ORIGIN).write(1, minibatch()))
  many = pa.concat_tables([table.slice(0, 1)] * 100_000).combine_chunks()
  pq.write_table(many.replace_schema_metadata(table.schema.metadata), tmp_path / "000001.parquet")
  monkeypatch.setattr(pq.ParquetFile, "read", lambda *args, **options: pytest.fail("it was read"))
  with pytest.raises(ValueError, match="it has 100000 rollouts, which are not 3 groups"):
    SavedRollouts(tmp_path, ORIGIN, 1)


class Harm:
  """What, unpickled, writes a file."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return open, (self.path, "w")


def test_an_extension_type_is_not_unpickled(tmp_path):
  """Arrow once read the Python types of a file as pickles (CVE-2023-47248)."""
  table = pq.read_table(RolloutWriter(tmp_path, ORIGIN).write(1, minibatch()))
  extension = {
    "ARROW:extension:name": "arrow.py_extension_type",
    "ARROW:extension:metadata": pickle.dumps(Harm(str(tmp_path / "harm"))),
  }
  field = table.schema.field("reward").with_metadata(extension)
  schema = table.schema.set(table.schema.get_field_index("reward"), field)
  pq.write_table(table.cast(schema), tmp_path / "000001.parquet")
  try:
    SavedRollouts(tmp_path, ORIGIN, 1)
  except ValueError as error:
    assert "000001.parquet" in str(error)
  assert not (tmp_path / "harm").exists()


def test_the_vocabulary_is_told_apart():
  tokenizer = byte_tokenizer()
  copy = hf.Tokenizer.from_str(tokenizer.backend.to_str())
  assert vocabulary_digest(Tokenizer(copy)) == vocabulary_digest(tokenizer)
  copy.add_tokens(["<think>"])
  assert vocabulary_digest(Tokenizer(copy)) != vocabulary_digest(tokenizer)
