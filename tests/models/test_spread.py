"""What is computed over several devices, in a process of its own that has eight fake ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
  "what",
  [
    "ring",
    "experts",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("lora", "rows", "kernels")),
  ],
)
def test_eight_devices_compute_what_one_does(what):
  here = Path(__file__).parent
  flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8"
  done = subprocess.run(
    [sys.executable, str(here / "eight_devices.py"), what],
    env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(here.parent.parent)},
    capture_output=True,
    text=True,
    timeout=400,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  assert done.stdout.split() == [what]
