"""A sampler over several devices samples what one over one device does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.marks import slow_but

HERE = Path(__file__).parent


@pytest.mark.parametrize("what", slow_but(["dense", "experts", "workers"], "dense"))
def test_four_devices_sample_the_tokens_of_one(what, tmp_path):
  flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4"
  done = subprocess.run(
    [sys.executable, str(HERE / "spread.py"), what, str(tmp_path)],
    env=dict(os.environ, XLA_FLAGS=flags, JAX_PLATFORMS="cpu", PYTHONPATH=str(HERE.parents[1])),
    capture_output=True,
    text=True,
    timeout=280,
  )
  assert done.returncode == 0, done.stderr
