"""What all tests share: a program is compiled once per checkout, and no test is timed."""

import functools
import os
from pathlib import Path

import hypothesis
import pytest

CACHE = Path(__file__).parent.parent / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))  # before jax is imported
# Compiling is what tests wait for, so programs are compiled in the quickest way: without LLVM's
# optimisations, and with the simpler of XLA's two emitters of fused loops, which takes a third of
# the time. Every run outside pytest is of optimised ones; `XLA_FLAGS= make test` tests those.
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", QUICK)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

from jax._src.interpreters import mlir  # noqa: E402  (it reads what is set above)

# JAX makes a new context of MLIR for every program it lowers, 8 ms each: of most files here a tenth
# to a fifth of the time. They share one, which costs memory but nothing else.
mlir.make_ir_context = functools.cache(mlir.make_ir_context)

hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="module")
def no_report():
  """Runs in this process write no report, which takes longer to draw than such runs to make."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr("vespo_jax.report.write", lambda workdir: None)
    yield
