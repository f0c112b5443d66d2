"""Files of rows: every format reads the same, and a damaged one is named with its row."""

import gzip
import json
import resource

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vespo_jax.tasks import rows

ROWS = [
  {"question": f"Wie viel ist {i} + 1?\n√", "answer": f"#### {i + 1}", "tags": [{"level": i}]}
  for i in range(200)
]
LINES = "".join(f"{json.dumps(row)}\n" for row in ROWS).encode()


def parquet(path, data=None):
  pq.write_table(pa.Table.from_pylist(data or ROWS), path, row_group_size=50)
  return path.read_bytes()


@pytest.mark.parametrize(
  "name,write",
  [
    ("a.parquet", parquet),
    ("a.jsonl", lambda path: path.write_bytes(LINES)),
    ("a.jsonl.gz", lambda path: path.write_bytes(gzip.compress(LINES))),
    ("a.json", lambda path: path.write_text(json.dumps(ROWS, indent=1))),
    ("a.json.gz", lambda path: path.write_bytes(gzip.compress(json.dumps(ROWS).encode()))),
    ("lines.json", lambda path: path.write_bytes(LINES)),  # many JSON Lines are called so
    ("mark.jsonl", lambda path: path.write_bytes(b"\xef\xbb\xbf" + LINES)),
    ("cut.jsonl", lambda path: path.write_bytes(LINES[:-1])),  # no newline at the end
  ],
)
def test_every_format_has_the_same_rows_in_order(name, write, tmp_path):
  path = tmp_path / name
  write(path)
  assert [row for _, row in rows.read(path)] == ROWS
  assert rows.count(path) == (200 if name.endswith("parquet") else None)


def test_a_row_says_where_it_stands_and_blank_lines_count(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_text('{"a": 1}\n\n  \n{"a": 2}\n')
  assert list(rows.read(path)) == [(f"{path}, line 1", {"a": 1}), (f"{path}, line 4", {"a": 2})]


def test_rows_may_be_the_values_of_a_member(tmp_path):
  path = tmp_path / "v0.json"
  path.write_text(json.dumps({"problems": {"P1": {"a": 1}, "P2": {"a": 2}}, "hints": {}}))
  assert [row for _, row in rows.read(path, root="problems")] == [{"a": 1}, {"a": 2}]
  with pytest.raises(ValueError, match="v0.json: it holds no list of rows under 'exercises'"):
    list(rows.read(path, root="exercises"))


def damaged(kind, path):
  """Writes a damaged file; returns its path and what must be said of it."""
  parts = {
    "bad line": ("a.jsonl", LINES + b"{oops\n" + LINES, "line 201: Expecting .* column 2$"),
    "cut line": ("a.jsonl", LINES[:-9], "a.jsonl, line 200: .* at column"),
    "no object": ("a.jsonl", b'{"a": 1}\n[1, 2]\n', "line 2: a row must be a JSON object, not .1"),
    "latin-1": ("a.jsonl", b'{"a": 1}\n{"a": "\xe9"}\n', "line 2: it is not UTF-8: .* byte 7"),
    "UTF-16": ("a.jsonl", '{"a": 1}\n'.encode("utf-16"), "line 1: it is not UTF-8"),
    "nested": ("a.jsonl", b'{"a": 1}\n{"a": ' + b"[" * 200_000 + b"\n", "line 2: .*recursion"),
    "cut gzip": ("a.jsonl.gz", gzip.compress(LINES)[:-200], "line [0-9]+: Compressed file ended"),
    "no gzip": ("a.jsonl.gz", LINES, "a.jsonl.gz, line 1: Not a gzipped file"),
    "cut array": ("a.json", json.dumps(ROWS).encode()[:-9], "a.json: .*line 1 column"),
    "array of texts": ("a.json", b'[{"a": 1}, "b"]', "a.json, row 2: a row must be a JSON object"),
    "pointer": (
      "a.parquet",
      b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
      "a.parquet: this is a pointer of Git LFS",
    ),
    "no parquet": ("a.parquet", LINES, "a.parquet: Parquet magic bytes not found"),
    "empty parquet": ("a.parquet", b"", "a.parquet: Parquet file size is 0 bytes"),
  }
  name, data, words = parts[kind]
  (path / name).write_bytes(data)
  return path / name, words


@pytest.mark.parametrize(
  "kind",
  [
    *("bad line", "cut line", "no object", "latin-1", "UTF-16", "nested", "cut gzip", "no gzip"),
    *("cut array", "array of texts", "pointer", "no parquet", "empty parquet"),
  ],
)
def test_a_damaged_file_is_one_message_with_file_and_row(kind, tmp_path):
  path, words = damaged(kind, tmp_path)
  with pytest.raises(ValueError, match=words) as caught:
    list(rows.read(path))
  assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_truncated_parquet_is_refused_by_name(tmp_path):
  data = parquet(tmp_path / "a.parquet")
  for size in (20, len(data) // 2, len(data) - 1):
    (tmp_path / "a.parquet").write_bytes(data[:size])
    with pytest.raises(ValueError, match="a.parquet: "):
      list(rows.read(tmp_path / "a.parquet"))


def test_a_parquet_with_a_damaged_page_says_after_which_row(tmp_path):
  path = tmp_path / "a.parquet"
  parquet(path)
  column = pq.read_metadata(path).row_group(2).column(0)
  data = bytearray(path.read_bytes())
  start = column.dictionary_page_offset or column.data_page_offset
  data[start : start + 40] = b"\xff" * 40
  path.write_bytes(data)
  with pytest.raises(ValueError, match="a.parquet, row [0-9]+: "):
    list(rows.read(path))


def test_a_parquet_with_text_that_is_not_utf8_says_its_row(tmp_path):
  text = pa.array([b"good"] * 70 + [b"\xe9"]).cast(pa.binary()).view(pa.string())
  pq.write_table(pa.table({"question": text}), tmp_path / "a.parquet")
  with pytest.raises(ValueError, match="a.parquet, row 71: .*utf-8"):
    list(rows.read(tmp_path / "a.parquet"))


def test_a_line_without_an_end_is_refused_without_being_read_whole(tmp_path):
  path = tmp_path / "a.jsonl"
  with path.open("wb") as file:
    file.write(b'{"a": 1}\n{"a": "')
    file.truncate(1 << 30)  # a hole: nothing is written
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  with pytest.raises(ValueError, match="a.jsonl, line 2: the line is longer than 64 MiB"):
    list(rows.read(path))
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB


def test_a_directory_in_the_place_of_a_file_is_an_error_too(tmp_path):
  (tmp_path / "a.jsonl").mkdir()
  with pytest.raises(ValueError, match="a.jsonl, line 1: .*directory"):
    list(rows.read(tmp_path / "a.jsonl"))


def test_an_array_without_measure_is_refused_before_it_is_parsed(tmp_path, monkeypatch):
  monkeypatch.setattr(rows, "MAX_JSON_BYTES", 1 << 20)
  path = tmp_path / "a.json.gz"
  path.write_bytes(gzip.compress(b"[" + b"{}," * (1 << 19) + b"{}]"))
  with pytest.raises(
    ValueError, match="a.json.gz: it holds more than 1 MiB; give it as JSON Lines"
  ):
    list(rows.read(path))
