"""One config on one machine: which layout, whether it fits, what it moves and how long it takes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import FrozenConfigDict

from configs.paper.layouts import ATTENTION, DECODE_ATTENTION, LAYOUTS
from experiments.scale import hlo, programs, search, table
from experiments.scale.costs import Sampling, UpdateTime, best_sampling, update_time
from experiments.scale.hardware import Hardware
from experiments.scale.programs import PROMPT_WIDTH, Compiled, DoesNotFit
from experiments.scale.published import described
from experiments.scale.search import BadLayout, Layout
from experiments.scale.workload import Workload
from vespo_jax import config as config_lib
from vespo_jax import config_policy
from vespo_jax.config import ConfigError
from vespo_jax.config_file import read_command
from vespo_jax.models import ModelSpec
from vespo_jax.sharding import MESH_AXES


@dataclasses.dataclass(frozen=True)
class Subject:
  """A config, checked, and the machine it is to run on.

  Attributes:
    name: of the config file.
    asked: the layout that was asked for, by mesh axis, with no -1 left; None: the best is sought.
  """

  name: str
  config: FrozenConfigDict
  spec: ModelSpec
  work: Workload
  hardware: Hardware
  asked: dict[str, int] | None


@dataclasses.dataclass(frozen=True)
class Found:
  """What an examination says: a table for people, the same as a JSON object, and the verdict."""

  text: str
  row: dict[str, Any]
  fits: bool


@dataclasses.dataclass(frozen=True)
class Programs:
  """What a compiler made of a layout; None where nothing was compiled.

  Attributes:
    refused, decode_refused: why the compiler for the device has no room for the update, and for the
      sampler's loop; "" where it has.
  """

  compiler: str
  update: Compiled | None = None
  decode: Compiled | None = None
  update_counts: hlo.Counts | None = None
  decode_counts: hlo.Counts | None = None
  refused: str = ""
  decode_refused: str = ""


def read(
  path: str, hardware: Hardware | None, overrides: Sequence[str], prompt_width: int
) -> Subject:
  """The subject of a command line. A model that is not there is taken by its published description.
  Without a `prompt_width` prompts are as long as the config lets them be.

  Raises ConfigError as `vespo_jax.config` does, if the machine has too few or many devices, or if
  micro-batches are given of a layout that is not known.
  """
  values, _ = read_command(["scale", f"--config={path}", "--workdir=.", *overrides])
  keys = [f"mesh.{axis}" for axis in MESH_AXES]
  model = Path(str(values["policy.path"])).name
  known = LAYOUTS.get(model, {})
  if hardware is None:
    if not known:
      raise ConfigError(f"--hardware=KIND:DEVICES is needed: there are no layouts of {model!r}")
    hardware = Hardware.parse(next(iter(known)))
  given = any(flag.startswith("--config.mesh.") for flag in overrides)
  in_pieces = any(flag.startswith("--config.batch.micro_batches=") for flag in overrides)
  if not given and str(hardware) in known:
    pieces = values["batch.micro_batches"]
    values |= known[str(hardware)] | ({"batch.micro_batches": pieces} if in_pieces else {})
    given = True
  if in_pieces and not given:
    raise ConfigError(
      f"--config.batch.micro_batches is of a layout, and none of {model!r} on {hardware} is known: "
      "give --config.mesh.* too"
    )
  if not given:  # whatever the file says is of another machine
    values |= dict.fromkeys(keys, 1) | {"mesh.fsdp": -1, "batch.micro_batches": 1}
  for key, kernels in (("policy", ATTENTION), ("sampler", DECODE_ATTENTION)):
    asked = any(flag.startswith(f"--config.{key}.attention") for flag in overrides)
    if values[f"{key}.attention"] != "dense" and not asked:
      values[f"{key}.attention"] = kernels[hardware.kind]
  with described(str(values["policy.path"])) as there:
    config = config_lib.validate({**values, "policy.path": there})  # type: ignore[arg-type]
    spec = config_policy.make_spec(config)
  layout = _resolved({axis: config.mesh[axis] for axis in MESH_AXES}, hardware) if given else None
  width = prompt_width or config.task.max_prompt_tokens or PROMPT_WIDTH
  work = Workload.of(config, spec, width)
  return Subject(Path(path).stem, config, spec, work, hardware, layout)


def examine(subject: Subject, compiler: str, mean_tokens: float) -> Found:
  """Compiles what there is to compile, and says what it takes.

  Args:
    compiler: `cpu` (the fake devices must be there), `tpu` or `none`.
    mean_tokens: of a response, for sampling; 0 is the most.
  """
  work, hardware = subject.work, subject.hardware
  try:
    layout = _layout(subject)
  except BadLayout as error:
    return _refusal(subject, str(error))
  if layout is None:
    least = search.nearest(work, hardware)
    why = "no layout divides the model and the batch"
    if least:
      gib = least.memory.total / 2**30
      why = f"no layout fits: the least, {least.words}, takes {gib:.0f} GiB of each device"
    return Found(f"{subject.name} on {hardware}: {why}.", _no_row(subject), False)
  work = dataclasses.replace(work, micro_batches=layout.micro_batches)
  subject = dataclasses.replace(subject, work=work)
  sampler = best_sampling(work, hardware, work.prompts * work.samples)
  made = _programs(subject, layout, sampler, compiler)
  time = _time(work, layout, hardware, made)
  fits = search.fits(layout.memory, hardware)
  if compiler == "tpu" and hardware.topology:
    fits = not made.refused
  lines = table.lines(subject, layout, made, time, sampler, mean_tokens or work.width)
  if not fits:
    lines += _proposal(subject)
  row = _row(subject, layout) | table.numbers(
    subject, layout, made, time, sampler, mean_tokens or work.width
  )
  return Found("\n".join(lines), row | {"fits": fits}, fits)


def _layout(subject: Subject) -> Layout | None:
  if subject.asked is None:
    return search.propose(subject.work, subject.hardware)
  return search.examine(subject.work, subject.asked, subject.hardware)


def _resolved(sizes: dict[str, int], hardware: Hardware) -> dict[str, int]:
  rest = math.prod(size for size in sizes.values() if size != -1)
  sizes = {
    axis: max(hardware.devices // rest, 1) if size == -1 else size for axis, size in sizes.items()
  }
  if math.prod(sizes.values()) != hardware.devices:
    raise ConfigError(
      f"mesh {sizes} is of {math.prod(sizes.values())} devices, and {hardware} has "
      f"{hardware.devices}"
    )
  return sizes


def _programs(
  subject: Subject, layout: Layout, sampler: Sampling | None, compiler: str
) -> Programs:
  if compiler == "none":
    return Programs(compiler)
  hardware = subject.hardware
  mesh_of = programs.fake_mesh
  if compiler == "tpu":
    mesh_of = lambda sizes: programs.tpu_mesh(sizes, str(hardware.topology))
  values = subject.config.to_dict()
  values["mesh"] |= layout.sizes
  if compiler == "cpu":  # which has no other, and no memory but the host's
    values["policy"]["attention"] = values["sampler"]["attention"] = "dense"
    values["optimizer"]["offload"] = False
  values["batch"]["micro_batches"] = layout.micro_batches
  config = FrozenConfigDict(values)
  spec, width = subject.spec, subject.work.prompt_width
  update = decode = None
  refused = decode_refused = ""
  try:
    update = programs.compile_update(config, spec, mesh_of(layout.sizes), width)
  except DoesNotFit as error:
    refused = str(error).splitlines()[0]
  if sampler is not None:  # one of them; a TPU's compiler wants all chips of its slice
    replicas = hardware.devices // sampler.tensor if compiler == "tpu" else 1
    sizes = dict.fromkeys(MESH_AXES, 1) | {"data": replicas, "tensor": sampler.tensor}
    slots = width + subject.work.width
    rows = sampler.rows * replicas
    try:
      decode = programs.compile_decode(config, spec, mesh_of(sizes), rows, slots)
    except DoesNotFit as error:
      decode_refused = str(error).splitlines()[0]
  return Programs(
    compiler,
    update,
    decode,
    hlo.count(update.text) if update else None,
    hlo.count(decode.text) if decode else None,
    refused,
    decode_refused,
  )


def _time(work: Workload, layout: Layout, hardware: Hardware, made: Programs) -> UpdateTime:
  """By the compiled program's collectives; its products where the device's own compiler made it."""
  if made.update_counts is None:
    return layout.time
  flops = None
  if made.compiler == "tpu":
    flops = max(made.update_counts.flops, layout.time.compute_s * _peak(work, hardware))
  return update_time(work, layout.sizes, hardware, made.update_counts.transfers, flops)


def _peak(work: Workload, hardware: Hardware) -> float:
  return hardware.chip.flops * (hardware.chip.float32_share if work.compute_bytes == 4 else 1.0)


def _refusal(subject: Subject, why: str) -> Found:
  lines = [f"{subject.name} on {subject.hardware}: {why}.", *_proposal(subject)]
  return Found("\n".join(lines), _no_row(subject), False)


def _proposal(subject: Subject) -> list[str]:
  other = search.propose(subject.work, subject.hardware)
  if other is None:
    return ["No layout of these devices is predicted to fit."]
  gib = other.memory.total / 2**30
  return [f"Predicted to fit ({gib:.1f} GiB): {other.words}", f"  {other.flags}"]


def _row(subject: Subject, layout: Layout) -> dict[str, Any]:
  there = {**layout.sizes, "micro_batches": layout.micro_batches}
  return {"config": subject.name, "hardware": str(subject.hardware), "layout": there}


def _no_row(subject: Subject) -> dict[str, Any]:
  return {
    "config": subject.name,
    "hardware": str(subject.hardware),
    "layout": None,
    "fits": False,
  }
