"""Run directories to report on."""

import pytest
import synthetic_run

from vespo_jax import report


@pytest.fixture(scope="session")
def reported(tmp_path_factory):
  """A finished run with its report written. Shared: tests only read it."""
  workdir = synthetic_run.write(tmp_path_factory.mktemp("runs") / "vespo-n8")
  report.write(workdir)
  return workdir


@pytest.fixture
def small_run(tmp_path):
  """A short run to change at will, without result or report."""
  return synthetic_run.write(tmp_path / "small", updates=9, result=False, evaluate_every=0)
