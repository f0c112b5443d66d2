"""`python -m experiments.scale.growth`: what grows with the devices and with the parameters.

Two sweeps of ahead-of-time compilations for fake CPU devices, each in a process of its own: a small
model over 1 to 1,024 devices, four prompts to each place along data and fsdp (more devices do more
work in the time of one), once by FSDP alone and once by FSDP, tensor and sequence together; and
models of 0.1 to 30 billion parameters on 64 devices. Compile times are seconds of CPU time, of all
threads. Host seconds are those of a minibatch going to the devices, all of them attached to this
one process; a process of a real pod has four or eight.

Writes docs/scale_growth.json, of which `python -m experiments.scale.page` makes docs/scale.md and
its figure. Points that are in it are not measured again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DEVICES = (1, 2, 8, 64, 256, 1024)
MODEL = {  # of the sweep over devices: as many layers as make them steps of a loop
  "policy.width": 256,
  "policy.layers": 12,
  "policy.heads": 8,
  "policy.kv_heads": 4,
  "policy.head_width": 32,
  "policy.mlp_width": 1024,
}
SIZES: dict[str, dict[str, int]] = {  # of random models beside the paper's, by name
  "0.1B": {"width": 768, "layers": 12, "heads": 12, "kv_heads": 4, "mlp_width": 2048},
  "0.5B": {"width": 1280, "layers": 24, "heads": 20, "kv_heads": 4, "mlp_width": 3456},
  "1.5B": {"width": 2048, "layers": 28, "heads": 16, "kv_heads": 4, "mlp_width": 6144},
}
PUBLISHED = ("Llama-3.2-3B-Instruct", "Qwen3-8B-Base", "Qwen3-30B-A3B-Base")
VOCABULARY = 32_768
WIDTHS = (128, 1024)  # tokens of prompts and of responses in the sweep over sizes
TIMEOUT_S = 900.0


def meshes(devices: int) -> dict[str, dict[str, int]]:
  """The layouts of the sweep over devices."""
  fsdp = min(devices, MODEL["policy.width"])  # which must divide the width; the rest is data
  found = {"fsdp": {"data": devices // fsdp, "fsdp": fsdp}}
  if devices >= 8:
    found["fsdp, tensor 2, sequence 2"] = {"fsdp": devices // 4, "tensor": 2, "sequence": 2}
  return found


def measure(point: Mapping[str, Any]) -> dict[str, Any]:
  """One point of a sweep, in this process, which must have the fake devices."""
  import time

  import jax
  import numpy as np

  from configs import base
  from experiments.scale import hlo, programs, published
  from experiments.scale.costs import axes_of
  from vespo_jax import config as config_lib
  from vespo_jax import config_policy, models, sharding

  config, sizes = base.get_config(), dict.fromkeys(sharding.MESH_AXES, 1) | point["mesh"]
  prompts = 4 * sizes["data"] * sizes["fsdp"]
  config.update_from_flattened_dict(
    {f"mesh.{axis}": size for axis, size in sizes.items()}
    | {"batch.prompts": prompts, "batch.samples_per_prompt": 4, "batch.micro_batches": 2}
    | {"policy.remat": "full", "sampler.max_new_tokens": point["widths"][1]}
    | {"sampler.processes": 1}
    | {key: value for key, value in MODEL.items() if point["model"] == "small"}
  )
  if point["model"] in published.SPECS:
    spec = published.SPECS[point["model"]]
  elif point["model"] in SIZES:
    spec = models.ModelSpec(VOCABULARY, head_width=64, **SIZES[point["model"]])
  else:
    spec = dataclasses.replace(
      config_policy.make_spec(config_lib.validate(config)), vocab_size=VOCABULARY
    )
  mesh = programs.fake_mesh(sizes)
  frozen = config_lib.validate(config)
  made = programs.compile_update(frozen, spec, mesh, point["widths"][0])
  counts = hlo.count(made.text)
  collectives: dict[str, float] = {}
  for transfer in counts.transfers:
    key = f"{transfer.kind} over {axes_of(transfer.group, sizes)}"
    collectives[key] = collectives.get(key, 0.0) + transfer.bytes
  abstract = programs.abstract_batch(frozen, spec, point["widths"][0])
  batch = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract)
  seconds = []
  for _ in range(3 if point["model"] == "small" else 0):
    started = time.process_time()
    placed = jax.device_put(batch, sharding.batch_sharding(mesh))
    jax.device_get(jax.block_until_ready(placed.rewards_PR))
    seconds.append(time.process_time() - started)
  return {
    **point,
    "devices": mesh.size,
    "parameters": models.count(spec),
    "compile_cpu_s": made.cpu_s,
    "arguments": made.argument_bytes,
    "temporaries": made.temporary_bytes,
    "flops": counts.flops,
    "collectives": {key: size for key, size in collectives.items() if size >= 1e4},
    "program_lines": made.text.count("\n"),
    "batch_bytes": sum(x.nbytes for x in jax.tree.leaves(batch)),
    "host_s": min(seconds, default=None),
  }


def points() -> list[dict[str, Any]]:
  """Every point of both sweeps."""
  by_devices = [
    {"sweep": "devices", "layout": name, "model": "small", "mesh": mesh, "widths": [32, 64]}
    for devices in DEVICES
    for name, mesh in meshes(devices).items()
  ]
  by_size = [
    {
      "sweep": "parameters",
      "layout": "fsdp 32, tensor 2",
      "model": model,
      "mesh": {"fsdp": 32, "tensor": 2},
      "widths": list(WIDTHS),
    }
    for model in (*SIZES, *PUBLISHED)
  ]
  return by_devices + by_size


def main(argv: Sequence[str] | None = None) -> int:
  """Measures every point that is missing, prints it and adds it to the file."""
  parser = argparse.ArgumentParser(prog="python -m experiments.scale.growth", description=__doc__)
  parser.add_argument("--only", choices=("devices", "parameters"), help="one sweep")
  parser.add_argument("--out", type=Path, default=Path("docs"), help="where it is written")
  parser.add_argument("--point", help=argparse.SUPPRESS)
  options = parser.parse_args(argv)
  if options.point:
    print(json.dumps(measure(json.loads(options.point))))
    return 0
  path = options.out / "scale_growth.json"
  known = json.loads(path.read_text()) if path.is_file() else []
  found = {_key(row): row for row in known}
  for point in points():
    if _key(point) in found or options.only not in (None, point["sweep"]):
      continue
    row = found[_key(point)] = _in_process(point)
    print(
      f"{row['sweep']} {row['devices']} devices, {row['parameters'] / 1e9:.2f}B, {row['layout']}: "
      f"compiled in {row['compile_cpu_s']:.1f} s, arguments {row['arguments'] / 1e6:.0f} MB, "
      f"temporaries {row['temporaries'] / 1e6:.0f} MB, sends "
      f"{sum(row['collectives'].values()) / 1e6:.1f} MB",
      flush=True,
    )
    ordered = [found[_key(point)] for point in points() if _key(point) in found]
    path.write_text(json.dumps(ordered, indent=1) + "\n")
  return 0


def _key(point: Mapping[str, Any]) -> str:
  """What tells points apart."""
  return json.dumps([point["sweep"], point["layout"], point["model"], point["mesh"]])


def _in_process(point: Mapping[str, Any]) -> dict[str, Any]:
  """One point, in a process that has as many fake devices. Raises OSError if that fails."""
  devices = 1
  for size in point["mesh"].values():
    devices *= size
  flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
  done = subprocess.run(
    [sys.executable, "-m", "experiments.scale.growth", f"--point={json.dumps(point)}"],
    env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=TIMEOUT_S,
  )
  if done.returncode:
    raise OSError(f"{point} failed: {done.stderr[-2000:]}")
  return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
  sys.exit(main())
