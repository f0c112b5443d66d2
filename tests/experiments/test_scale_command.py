"""What `experiments.scale` says of the paper's configs, by the model alone."""

import json
from pathlib import Path

import numpy as np

from configs.paper.layouts import LAYOUTS
from experiments.scale import __main__ as command
from experiments.scale import page

REPOSITORY = Path(__file__).parent.parent.parent
QWEN = ["--config=configs/paper/qwen3_8b.py", "--compiler=none"]


def test_a_proposed_layout_is_reported_with_its_own_micro_batches(tmp_path, monkeypatch):
  monkeypatch.chdir(REPOSITORY)
  rows = tmp_path / "rows.jsonl"
  assert command.main([*QWEN, "--hardware=h200:64", f"--json={rows}"]) == 0
  row = json.loads(rows.read_text())
  m, fsdp = row["layout"]["micro_batches"], row["layout"]["fsdp"]
  gathered = row["memory"]["params"] / 2 * (fsdp - 1)  # in bfloat16; of float32 parameters
  assert m > 1
  np.testing.assert_allclose(row["expected"]["all-gather over fsdp"], 2 * m * gathered, rtol=1e-3)


def test_micro_batches_alone_change_a_known_layout(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(REPOSITORY)
  rows = tmp_path / "rows.jsonl"
  pieces = "--config.batch.micro_batches=8"
  assert command.main([*QWEN, "--hardware=h200:32", f"--json={rows}", pieces]) == 0
  known = LAYOUTS["Qwen3-8B-Base"]["h200:32"]
  layout = json.loads(rows.read_text())["layout"]
  assert layout["micro_batches"] == 8 != known["batch.micro_batches"]
  assert layout["fsdp"] == known["mesh.fsdp"]
  assert command.main([*QWEN, "--hardware=h200:64", pieces]) == 2
  assert "give --config.mesh.* too" in capsys.readouterr().err


def test_the_page_leaves_out_what_nothing_could_be_said_of(tmp_path, monkeypatch):
  monkeypatch.chdir(REPOSITORY)
  for name in ("scale.jsonl", "scale_growth.json"):
    (tmp_path / name).write_bytes((REPOSITORY / "docs" / name).read_bytes())
  rows = tmp_path / "scale.jsonl"
  here = ["--config=configs/paper/qwen3_30b_a3b.py", "--compiler=none", f"--json={rows}"]
  assert command.main([*here, "--hardware=v6e:64"]) == 1
  assert json.loads(rows.read_text().splitlines()[-1]) == {
    "config": "qwen3_30b_a3b",
    "hardware": "v6e:64",
    "layout": None,
    "fits": False,
  }
  assert page.main([f"--docs={tmp_path}"]) == 0
  assert (tmp_path / "scale.md").read_text() == (REPOSITORY / "docs/scale.md").read_text()
