"""`python -m experiments.scale --config=FILE`: what a run takes on hardware that is not here.

    python -m experiments.scale --config=configs/paper/qwen3_30b_a3b.py
    python -m experiments.scale --config=configs/paper/qwen3_8b.py --hardware=v5p:64 --compiler=tpu
    python -m experiments.scale --config=configs/paper/qwen3_8b.py --config.mesh.fsdp=32 ...

Compiles the learner's own update and the sampler's own decode loop ahead of time, allocating
nothing, and prints bytes of one device, floating-point operations, bytes of each collective, and
from a machine's peaks (experiments/scale/hardware.py) the time of an update, its model-FLOPs
utilisation and how many devices must sample for each that learns.

`--hardware=KIND:DEVICES` are the learner's devices; without it the first of the model's layouts in
configs/paper/layouts.py. The layout is that of the flags, else the file's for that hardware, else
the one that is predicted fastest of those that fit; `--config.batch.micro_batches` alone changes
the file's. `--compiler=cpu` compiles for fake devices of
the CPU, whose temporaries and dense attention are not an accelerator's: the model then says whether
it fits. `--compiler=tpu` asks the TPU's own compiler, which needs no TPU but the package `libtpu`
(`pip install libtpu`, in the version that `jax[tpu]` names); then that says so. `--compiler=none`
compiles nothing.

Exit codes: 0 it fits; 1 it does not, and a layout that does is proposed where there is one; 2 bad
usage or config.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.scale.hardware import Hardware

COMPILERS = ("cpu", "tpu", "none")


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the table of one config on one machine; see the module's docstring."""
  parser = argparse.ArgumentParser(
    prog="python -m experiments.scale",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--config", required=True, help="config file")
  parser.add_argument("--hardware", help="KIND:DEVICES, like v5p:64, v6e:64, h100:32 or h200:32")
  parser.add_argument("--compiler", choices=COMPILERS, default="cpu")
  parser.add_argument(
    "--prompt_width",
    type=int,
    default=0,
    help="tokens of the longest prompt; 0: the config's, or 1024",
  )
  parser.add_argument(
    "--mean_tokens", type=float, default=0.0, help="of a response, for sampling; 0: the most"
  )
  parser.add_argument("--json", type=Path, help="a file that the numbers are added to, a line")
  options, overrides = parser.parse_known_args(argv)
  try:
    hardware = options.hardware and Hardware.parse(options.hardware)
  except ValueError as error:
    parser.error(str(error))

  os.environ["JAX_PLATFORMS"] = "cpu"  # before jax is imported; of a TPU only the compiler is used
  from experiments.scale import examination  # imports jax, which reads XLA_FLAGS when it first runs
  from vespo_jax.config import ConfigError

  try:
    subject = examination.read(options.config, hardware, overrides, options.prompt_width)
  except ConfigError as error:
    print(f"experiments.scale: {error}", file=sys.stderr)
    return 2
  if options.compiler == "tpu" and subject.hardware.topology is None:
    print(
      f"experiments.scale: --compiler=tpu needs a TPU --hardware, not {subject.hardware}",
      file=sys.stderr,
    )
    return 2
  if options.compiler == "cpu":
    devices = f"--xla_force_host_platform_device_count={subject.hardware.devices}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {devices}"
  found = examination.examine(subject, options.compiler, options.mean_tokens)
  print(found.text)
  if options.json:
    with options.json.open("a") as file:
      file.write(json.dumps(found.row) + "\n")
  return 0 if found.fits else 1


if __name__ == "__main__":
  sys.exit(main())
