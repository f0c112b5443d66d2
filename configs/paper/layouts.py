"""Layouts of the learner by model and hardware: what differs between machines, and nothing else.

Hardware is named KIND:DEVICES, as `python -m experiments.scale --hardware` takes it: h200:32 is
four nodes of eight, v5p:64 a slice of 64 chips (Google's accelerator type v5p-128). A config file
has the first layout of its model; that command prints another one as flags for `vespo_jax.train`,
and how much of each device's memory it takes. docs/scale.md has what it says of all of them.

Their fused attention (`ATTENTION`) sees whole sequences, so none of them divides sequences.
"""

Layout = dict[str, int]  # by config key


def _layout(micro_batches: int, **axes: int) -> Layout:
  mesh = {axis: axes.get(axis, 1) for axis in ("data", "fsdp", "tensor", "expert", "sequence")}
  return {f"mesh.{axis}": size for axis, size in mesh.items()} | {
    "batch.micro_batches": micro_batches
  }


# By hardware: the learner's attention, and the samplers'.
ATTENTION = {"h100": "cudnn", "h200": "cudnn", "v5p": "splash", "v6e": "splash"}
DECODE_ATTENTION = {"h100": "flash", "h200": "flash", "v5p": "paged", "v6e": "paged"}

# Devices of each sampler: those that give most tokens per second and device, by that command.
SAMPLERS: dict[str, dict[str, int]] = {
  "Llama-3.2-3B-Instruct": {"h200:32": 4, "h100:32": 4, "v5p:64": 4, "v6e:64": 8},
  "Qwen3-8B-Base": {"h200:32": 4, "h100:32": 8, "v5p:64": 4, "v6e:64": 8},
  "Qwen3-30B-A3B-Base": {"h200:32": 4, "h100:64": 4, "v5p:64": 4},
}

LAYOUTS: dict[str, dict[str, Layout]] = {
  "Llama-3.2-3B-Instruct": {
    "h200:32": _layout(4, fsdp=32),
    "h100:32": _layout(4, fsdp=32),
    "v5p:64": _layout(2, fsdp=64),
    "v6e:64": _layout(8, fsdp=32, tensor=2),
  },
  "Qwen3-8B-Base": {
    "h200:32": _layout(4, fsdp=32),
    "h100:32": _layout(8, fsdp=32),
    "v5p:64": _layout(4, fsdp=64),
    "v6e:64": _layout(16, fsdp=16, tensor=4),
  },
  "Qwen3-30B-A3B-Base": {
    "h200:32": _layout(8, fsdp=32),
    "h100:64": _layout(8, fsdp=32, tensor=2),
    "v5p:64": _layout(4, fsdp=64),
  },
}
