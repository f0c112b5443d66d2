"""`python -m experiments.scale.page`: docs/scale.md and its figure, from what was measured.

It reads docs/scale.jsonl, lines that `python -m experiments.scale --json=docs/scale.jsonl` added
(of two for one config and machine the last counts), and docs/scale_growth.json of
`python -m experiments.scale.growth`. The prose around the tables is page.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from experiments.scale.hardware import CHIPS, GIB

Row = Mapping[str, Any]
AXES = ("data", "fsdp", "tensor", "expert", "sequence")


def main(argv: Sequence[str] | None = None) -> int:
  """Writes the page."""
  parser = argparse.ArgumentParser(prog="python -m experiments.scale.page", description=__doc__)
  parser.add_argument("--docs", type=Path, default=Path("docs"))
  docs = parser.parse_args(argv).docs
  lines = (docs / "scale.jsonl").read_text().splitlines()
  latest = {
    (row["config"], row["hardware"], row["dtype"], row["compiler"]): row
    for row in map(json.loads, lines)
    if row["layout"]  # else nothing could be said
  }
  rows = [row for row in latest.values() if row["compiler"] == "none"]
  compiled = [row for row in latest.values() if "arguments" in row]
  growth = json.loads((docs / "scale_growth.json").read_text())
  draw(growth, docs / "scale.png")
  notes = (Path(__file__).parent / "page.md").read_text()
  made = {
    "CONFIGS": "\n".join(_configs(rows)),
    "MEMORY": "\n".join(_memory(rows)),
    "CHECKS": "\n".join(_checks(compiled)),
    "COLLECTIVES": "\n".join(_collectives([*rows, *compiled])),
    "SAMPLERS": "\n".join(_samplers(rows)),
    "MACHINES": "\n".join(_machines()),
    "DEVICES": "\n".join(_devices(growth)),
    "PARAMETERS": "\n".join(_parameters(growth)),
  }
  for name, table in made.items():
    notes = notes.replace(f"<!-- {name} -->", table)
  (docs / "scale.md").write_text(notes)
  return 0


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterable[str]:
  yield "| " + " | ".join(head) + " |"
  yield "|" + " --- |" + " ---: |" * (len(head) - 1)
  for row in rows:
    yield "| " + " | ".join(map(str, row)) + " |"


def _gib(size: float | None) -> str:
  return "" if size is None else f"{size / GIB:.1f}"


def _layout(row: Row) -> str:
  layout = row["layout"]
  return ", ".join(f"{axis} {layout[axis]}" for axis in AXES if layout[axis] > 1)


def _configs(rows: Iterable[Row]) -> Iterable[str]:
  head = (
    *("config", "machine", "layout", "micro-batches", "GiB", "of usable", "update s"),
    *("scoring s", "MFU at most"),
  )
  return _table(
    head,
    (
      (
        *(row["config"], row["hardware"], _layout(row), row["layout"]["micro_batches"]),
        *(_gib(row["memory"]["total"]), _gib(row["usable"])),
        *(f"{row['update_s'][0]:.0f} - {row['update_s'][1]:.0f}", f"{row['scoring_s']:.0f}"),
        f"{row['mfu']:.0%}",
      )
      for row in rows
    ),
  )


def _memory(rows: Iterable[Row]) -> Iterable[str]:
  parts = ("params", "optimizer", "grads", "anchors", "kept", "block", "attention", "head")
  head = ("config, machine", *parts, "temporaries")
  return _table(
    head,
    (
      (
        f"{row['config']}, {row['hardware']}",
        *(_gib(row["memory"][part]) for part in parts),
        _gib(row["memory"]["temporary"]),
      )
      for row in rows
    ),
  )


def _checks(rows: Iterable[Row]) -> Iterable[str]:
  head = (
    *("config, machine, type", "layout", "micro-batches", "arguments: model", "compiler"),
    *("temporaries: model", "compiler", "products: model", "compiler", "compiled in"),
  )
  return _table(
    head,
    (
      (
        *(_name(row), _layout(row), row["layout"]["micro_batches"]),
        *(_gib(row["memory"]["params"] + row["memory"]["optimizer"]), _gib(row["arguments"])),
        *(_gib(row["memory"]["temporary"]), _gib(row["temporaries"])),
        *(f"{row['flops_made']:.1e}", f"{row['flops_compiled']:.1e}", f"{row['compile_s']:.0f} s"),
      )
      for row in rows
    ),
  )


def _name(row: Row) -> str:
  return f"{row['config']}, {row['hardware']}, {row['dtype']}"


def _collectives(rows: Iterable[Row]) -> Iterable[str]:
  head = ("config, machine, type", "collective", "model GB", "compiled GB")
  body = []
  for row in rows:
    compiled, expected = row.get("collectives", {}), row["expected"]
    for name in sorted(set(compiled) | set(expected)):
      pair = expected.get(name, 0.0), compiled.get(name, 0.0)
      if max(pair) >= 1e9:
        gigabytes = [f"{size / 1e9:,.0f}" for size in pair[: 2 if compiled else 1]]
        row_of = (_name(row), name, *gigabytes)
        body.append(row_of if compiled else (*row_of, "not compiled"))
  return _table(head, body)


def _samplers(rows: Iterable[Row]) -> Iterable[str]:
  head = (
    *("config, machine", "devices", "rows", "weights GiB", "cache GiB", "tokens/s of a device"),
    *("devices that sample for each that learns", "published GB", "s"),
  )
  return _table(
    head,
    (
      (
        f"{row['config']}, {row['hardware']}",
        *(row["sampler"]["tensor"], row["sampler"]["rows"], _gib(row["sampler"]["weights"])),
        *(_gib(row["sampler"]["cache"]), f"{row['sampler']['tokens_per_s']:,.0f}"),
        *(f"{row['sampler']['ratio']:.2f}", f"{row['publication']['bytes'] / 1e9:.1f}"),
        f"{row['publication']['seconds']:.2f}",
      )
      for row in rows
      if "sampler" in row
    ),
  )


def _machines() -> Iterable[str]:
  head = ("", "TFLOP/s bf16", "HBM GB", "HBM GB/s", "fast links GB/s", "slow links GB/s", "source")
  return _table(
    head,
    (
      (
        *(name, f"{chip.flops / 1e12:.0f}", f"{chip.memory_bytes / 1e9:.0f}"),
        *(f"{chip.memory_bandwidth / 1e9:.0f}", f"{chip.fast / 1e9:.0f}"),
        *(f"{chip.slow / 1e9:g}", chip.source),
      )
      for name, chip in CHIPS.items()
    ),
  )


def _moved(row: Row) -> float:
  return sum(row["collectives"].values())


def _devices(growth: Iterable[Row]) -> Iterable[str]:
  head = (
    *("layout", "devices", "compile CPU s", "program lines", "arguments MB", "temporaries MB"),
    *("sends MB", "batch MB", "host CPU s"),
  )
  return _table(
    head,
    (
      (
        *(row["layout"], f"{row['devices']:,}", f"{row['compile_cpu_s']:.1f}"),
        *(f"{row['program_lines']:,}", f"{row['arguments'] / 1e6:.1f}"),
        *(f"{row['temporaries'] / 1e6:.1f}", f"{_moved(row) / 1e6:.1f}"),
        *(f"{row['batch_bytes'] / 1e6:.2f}", f"{row['host_s']:.3f}"),
      )
      for row in growth
      if row["sweep"] == "devices"
    ),
  )


def _parameters(growth: Iterable[Row]) -> Iterable[str]:
  head = (
    *("model", "parameters", "compile CPU s", "program lines", "arguments GB", "temporaries GB"),
    "sends GB",
  )
  return _table(
    head,
    (
      (
        *(row["model"], f"{row['parameters'] / 1e9:.2f}B", f"{row['compile_cpu_s']:.1f}"),
        *(f"{row['program_lines']:,}", f"{row['arguments'] / 1e9:.2f}"),
        *(f"{row['temporaries'] / 1e9:.2f}", f"{_moved(row) / 1e9:.2f}"),
      )
      for row in growth
      if row["sweep"] == "parameters"
    ),
  )


def draw(growth: Sequence[Row], path: Path) -> None:
  """The figure of both sweeps, logarithmic on both axes."""
  figure, axes = plt.subplots(2, 3, figsize=(12, 6.5))
  panels = (
    ("compile CPU s", lambda row: row["compile_cpu_s"]),
    ("MB of a device: arguments and temporaries", lambda row: _held(row) / 1e6),
    ("MB that a device sends", lambda row: _moved(row) / 1e6),
  )
  for line, (sweep, size) in zip(
    axes, (("devices", "devices"), ("parameters", "parameters")), strict=True
  ):
    rows = [row for row in growth if row["sweep"] == sweep]
    for axis, (title, value) in zip(line, panels, strict=True):
      for layout in dict.fromkeys(row["layout"] for row in rows):
        known = [(row[size], value(row)) for row in rows if row["layout"] == layout]
        known = [(x, y) for x, y in known if y > 0]
        axis.loglog(*zip(*known, strict=True), marker="o", label=layout)
      axis.set_xlabel(size)
      axis.set_title(title, fontsize=10)
      if axis.lines:
        axis.legend(fontsize=8)
      low, high = axis.get_ylim()
      axis.set_ylim(min(low, high / 30), high * 1.5)
  figure.tight_layout()
  figure.savefig(path, dpi=100)
  plt.close(figure)


def _held(row: Row) -> float:
  return row["arguments"] + row["temporaries"]


if __name__ == "__main__":
  sys.exit(main())
