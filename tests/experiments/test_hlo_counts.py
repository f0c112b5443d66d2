"""Bytes of collectives and products, counted in programs whose numbers are known by hand."""

from pathlib import Path

import numpy as np
import pytest

from experiments.scale import hlo

# A loop of 3 over a loop of 5 by its condition alone, which no annotation says.
PROGRAM = (Path(__file__).parent / "program.hlo").read_text()


def test_every_collective_of_a_program_is_counted_as_often_as_it_runs():
  counts = hlo.count(PROGRAM)
  found = {(t.kind, t.group): (t.count, t.bytes) for t in counts.transfers}
  assert found == {
    ("all-reduce", (0, 1, 2, 3)): (15, 15 * 2 * 0.75 * 512),  # 16 x 8 float32
    ("all-gather", (0, 4)): (3, 3 * 0.5 * 512),  # 8 x 32 bfloat16
    ("reduce-scatter", (0, 1, 2, 3)): (1, 0.75 * 512),  # the fusion's: 16 x 8 float32 go in
    ("all-gather", (0, 1, 4, 5)): (1, 0.75 * 512),
    ("reduce-scatter", (0, 4)): (1, 0.5 * 128),  # twice 2 x 8 float32 go in
    ("all-to-all", (0, 2)): (1, 0.5 * 64),
    ("collective-permute", (0, 4)): (1, 64),
  }
  assert counts.flops == 3 * 2 * 16 * 32 * 8
  assert counts.unknown_loops == 0
  assert counts.bytes_of("all-gather") == 3 * 256 + 384


def test_a_loop_of_unknown_length_counts_once_and_is_told():
  text = PROGRAM.replace(', backend_config={"known_trip_count":{"n":"3"}}', "")
  counts = hlo.count(text)
  assert counts.unknown_loops == 1
  assert counts.flops == 2 * 16 * 32 * 8


@pytest.mark.parametrize(
  "labels,window,flops",
  [
    ("bf_io->bf", "", 2 * 6 * 5 * 7),
    ("0bf_0io->0bf", "window={size=4 stride=3 pad=0_0 lhs_dilate=4}, ", 2 * 4 * 6 * 5 * 7),
    ("0fb_0io->bf0", "window={size=4}, ", 2 * 6 * 5 * 4 * 7),  # the batch is summed over
  ],
)
def test_products_that_are_written_as_convolutions(labels, window, flops):
  batched = "0" in labels
  kernel = "f32[4,7,5]" if batched else "f32[7,5]"
  result = {"bf_io->bf": "f32[6,5]", "0bf_0io->0bf": "f32[4,6,5]"}.get(labels, "f32[6,5,1]")
  text = f"""HloModule m
ENTRY %main (x: f32[4,6,7], w: {kernel}) -> {result} {{
  %x = f32[4,6,7]{{2,1,0}} parameter(0)
  %w = {kernel} parameter(1)
  ROOT %y = {result} convolution(%x, %w), {window}dim_labels={labels}
}}
"""
  assert hlo.count(text).flops == flops


def test_what_is_no_program_or_no_known_group_is_refused():
  with pytest.raises(ValueError, match="no ENTRY"):
    hlo.count("HloModule empty\n")
  with pytest.raises(ValueError, match="no groups of devices"):
    hlo.count(PROGRAM.replace("replica_groups=[4,2]<=[2,4]T(1,0)", "replica_groups=new"))


def test_a_ring_sends_what_the_textbook_says():
  whole, n = 1024.0, 8
  for kind, result in (("all-gather", whole), ("reduce-scatter", whole / n)):
    np.testing.assert_allclose(hlo.sent(kind, result, n), whole * (n - 1) / n)
  np.testing.assert_allclose(hlo.sent("all-reduce", whole, n), 2 * whole * (n - 1) / n)
  assert hlo.sent("all-reduce", whole, 1) == 0
