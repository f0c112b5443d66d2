"""Works off a list of runs, a few at a time, each on a core of its own."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent import futures
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from experiments.suite import results as results_lib
from experiments.suite import runs as runs_lib
from experiments.suite.runs import Run
from vespo_jax.command import PREEMPTED

DIVERGED = 3  # exit code of a run that has a result all the same
STOP_S = 120.0  # for a run to save itself


class Pool:
  """Runs what has no result yet; several processes may work on the same list.

  A run that is stopped (Ctrl-C, or the budget) has saved itself and goes on the next time.

  Args:
    results: the file that results are appended to.
    scratch: where run directories are while they are worked on.
    jobs: runs at a time; each is bound to one core, if there are that many. None: one at a time,
      on all cores.
    budget_s: after so many seconds no run is begun.
  """

  def __init__(self, results: Path, scratch: Path, *, jobs: int | None, budget_s: float):
    self._results, self._scratch, self._jobs = results, scratch, jobs or 1
    self._bound = jobs is not None and hasattr(os, "sched_getaffinity")
    self._deadline = time.monotonic() + budget_s
    self._stopping = threading.Event()
    self._failures: list[str] = []
    self._console = Console(stderr=True)

  def work(self, runs: Sequence[Run]) -> list[str]:
    """Works until nothing is left that can be begun; returns what went wrong, one line a run."""
    self._scratch.mkdir(parents=True, exist_ok=True)
    self.adopt(runs)
    todo: queue.SimpleQueue[Run] = queue.SimpleQueue()
    for run in (missing := self.missing(runs)):
      todo.put(run)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=self._console, transient=True) as bar:
      task = bar.add_task("runs", total=len(missing))
      seconds: list[float] = []

      def done(run: Run, took: float) -> None:
        if took:
          seconds.append(took)
        bar.advance(task)
        left = len(missing) - int(bar.tasks[0].completed)
        mean = sum(seconds) / max(len(seconds), 1)
        eta = f", {left * mean / self._jobs / 60:.0f} min left" if seconds else ""
        bar.update(task, description=f"runs ({mean:.0f} s each{eta})")
        self._console.print(f"{run.experiment}: {run.method} N={run.staleness} seed {run.seed}")

      cores = sorted(os.sched_getaffinity(0)) if self._bound else []
      # Futures, not `Thread.join`: until Python 3.13 a join that Ctrl-C interrupts takes the thread
      # for ended.
      with futures.ThreadPoolExecutor(self._jobs) as executor:
        workers = [
          executor.submit(self._worker, todo, done, cores[i : i + 1]) for i in range(self._jobs)
        ]
        try:
          for worker in workers:
            worker.result()
        finally:  # Ctrl-C or SIGTERM: the children save themselves, and the executor waits for them
          self._stopping.set()
    return self._failures

  def missing(self, runs: Sequence[Run]) -> list[Run]:
    """Those without a result."""
    known = {result["key"] for result in results_lib.read(self._results)}
    return [run for run in runs if run.key not in known]

  def adopt(self, runs: Sequence[Run]) -> None:
    """Takes over what another experiment has run already, from the files beside this one."""
    others = [path for path in self._results.parent.glob("*.jsonl") if path != self._results]
    known = {result["key"]: result for path in others for result in results_lib.read(path)}
    for run in self.missing(runs):
      if run.key in known:
        names = {"experiment": run.experiment, "method": run.method, "staleness": run.staleness}
        results_lib.append(self._results, {**known[run.key], **names})

  def _worker(self, todo: queue.SimpleQueue, done, core: list[int]) -> None:
    if core:
      os.sched_setaffinity(0, core)  # of this thread, and so of what it starts
    while not self._stopping.is_set() and time.monotonic() < self._deadline:
      try:
        run = todo.get_nowait()
      except queue.Empty:
        return
      with _claimed(self._scratch / f"{run.key}.lock") as mine:
        took = self._one(run) if mine and self.missing([run]) else 0.0
      done(run, took)

  def _one(self, run: Run) -> float:
    """Runs it and keeps its result; returns the seconds it took."""
    workdir = self._scratch / run.key
    started, commit = time.perf_counter(), _commit()  # of the code that is about to run
    log = self._scratch / f"{run.key}.log"
    with log.open("w") as output:
      process = subprocess.Popen(run.command(workdir), stdout=output, stderr=output)
      while process.poll() is None:
        if self._stopping.wait(0.2):
          process.terminate()
          with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
          process.kill()
          process.wait(STOP_S)
    if process.returncode == PREEMPTED:
      return 0.0
    if process.returncode not in (0, DIVERGED):
      last = log.read_text().strip().splitlines()[-1:]
      self._failures.append(f"{run.method} N={run.staleness} seed {run.seed}: {last}")
      return 0.0
    took = time.perf_counter() - started
    config = (workdir / "config.json").read_bytes()
    result = {
      "experiment": run.experiment,
      "method": run.method,
      "seed": run.seed,
      "staleness": run.staleness,
      "key": run.key,
      "changes": dict(run.changes),
      "config_hash": hashlib.sha256(config).hexdigest()[:16],
      "commit": commit,
      **runs_lib.scores(workdir),
    }
    results_lib.append(self._results, result)
    shutil.rmtree(workdir, ignore_errors=True)
    log.unlink()
    return took


@contextlib.contextmanager
def _claimed(path: Path) -> Iterator[bool]:
  """Whether this process is the one to work on what `path` names."""
  with path.open("w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      yield False
      return
    yield True


def _commit() -> str:
  """The commit of the code, "" where there is no repository."""
  try:
    done = subprocess.run(
      ["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=10
    )
  except (OSError, subprocess.TimeoutExpired) as error:
    print(f"no commit is known: {error}", file=sys.stderr)
    return ""
  return done.stdout.strip()
