"""The launch scripts, with what they call replaced by programs that say what they were told."""

import importlib.util
import json
import os
import subprocess
from pathlib import Path

import pytest

from configs import debug
from vespo_jax import config as config_lib

FOLDER = Path(__file__).parents[2] / "experiments" / "launch"
STUBS = {  # what each does with the command line of the trainer
  "gcloud": 'for a; do case $a in --command=*) bash -c "${a#--command=}";; esac; done',
  "xpk": 'for a; do case $a in --command=*) bash -c "${a#--command=}";; esac; done',
  "srun": 'shift; "$@"',
  "ssh": 'shift 2; bash -c "$*"',
  "scontrol": "echo requeued",
  "python": 'python3 -c "import json, sys; print(json.dumps(sys.argv[1:]))" "$@"; exit $CODE',
}
START = {  # arguments, variables, processes
  "cloud_tpu": ([], {"TPU": "t", "ZONE": "z", "HOSTS": "2"}, 1),
  "gke_xpk": (
    [],
    {"CLUSTER": "c", "TPU_TYPE": "v5p-16", "HOSTS": "2", "IMAGE": "i", "NAME": "n"},
    1,
  ),
  "slurm": (
    [],
    {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "1", "SLURM_GPUS_ON_NODE": "4"},
    1,
  ),
  "ray": (["10.0.0.1 10.0.0.2"], {"RAY_HEAD": "10.0.0.9:6379", "SAMPLERS": "2"}, 2),
}


def launch(script, place, variables, *arguments, code=0):
  """The exit code, the output, and the arguments of every trainer that would have been started."""
  stubs = place / "vespo_jax" / ".venv" / "bin"
  stubs.mkdir(parents=True, exist_ok=True)
  for name, text in STUBS.items():
    (stubs / name).write_text(f"#!/bin/bash\n{text}\n")
    (stubs / name).chmod(0o755)
  (place / ".venv").exists() or (place / ".venv").symlink_to("vespo_jax/.venv")
  done = subprocess.run(
    [FOLDER / f"{script}.sh", *arguments],
    env={"PATH": f"{stubs}:{os.environ['PATH']}", "CODE": str(code), **variables},
    cwd=place,
    capture_output=True,
    text=True,
    timeout=60,
  )
  started = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
  return done, started


def test_there_is_a_test_of_every_script():
  assert sorted(START) == sorted(path.stem for path in FOLDER.glob("*.sh"))


@pytest.mark.parametrize("script", START)
def test_a_script_starts_trainers_whose_config_is_good(script, tmp_path, monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)  # Ray may not be here
  subprocess.run(["bash", "-n", FOLDER / f"{script}.sh"], check=True)
  arguments, variables, processes = START[script]
  workdir = tmp_path / "a run"
  paths = {"CONFIG": debug.__file__, "WORKDIR": str(workdir)}
  extra = "--config.objective.aggregation=token-mean"
  done, started = launch(script, tmp_path, variables | paths, *arguments, extra)
  assert done.returncode == 0 and len(started) == processes, done.stderr
  for index, (flag, module, *flags) in enumerate(sorted(started)):  # they start side by side
    assert (flag, module) == ("-m", "vespo_jax.train")
    config, where = config_lib.parse(["train", *flags])
    assert where == workdir and config.objective.aggregation == "token-mean"
    assert config.distributed.enabled and config.sampler.processes == 2
    if script == "ray":
      assert config.distributed.process_id == index and config.distributed.num_processes == 2


@pytest.mark.parametrize("script", START)
def test_a_script_says_what_it_lacks_and_ends_as_the_run_does(script, tmp_path):
  arguments, variables, _ = START[script]
  done, _ = launch(script, tmp_path, variables, *arguments)
  assert done.returncode != 0 and "CONFIG: config file" in done.stderr
  paths = {"CONFIG": debug.__file__, "WORKDIR": str(tmp_path / "run")}
  done, _ = launch(script, tmp_path, variables | paths, *arguments, code=75)
  assert ("requeued" in done.stdout) == (script == "slurm")
  if script in ("slurm", "ray"):
    assert done.returncode == 75
