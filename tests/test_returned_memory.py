"""The system gets back what compilation freed."""

import ctypes

import jax
import jax.numpy as jnp

from vespo_jax import memory


def test_memory_is_given_back_once_for_each_long_compilation(monkeypatch):
  calls = []

  class Library:
    def malloc_trim(self, pad):
      calls.append(pad)

  monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
  monkeypatch.setattr(memory, "LEAST_S", 0.0)
  memory.return_after_compiling.cache_clear()
  try:
    memory.return_after_compiling()
    memory.return_after_compiling()
    program, argument = jax.jit(lambda x: x * 3 + 1), jnp.ones(5)
    calls.clear()
    program(argument)
    assert calls == [0]
    program(argument)
    monkeypatch.setattr(memory, "LEAST_S", 1e6)
    jax.jit(lambda x: x * 4 + 1)(argument)
    assert calls == [0]
  finally:
    memory.return_after_compiling.cache_clear()
