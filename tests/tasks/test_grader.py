"""Each way a verifier can break costs its own answer and nothing else."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import hostile_family  # noqa: F401  (registers the family)
import psutil
import pytest

from vespo_jax import tasks
from vespo_jax.processes import ChildDied
from vespo_jax.tasks import Example

EXAMPLE = Example(0, "question", "good", "{}")


def grade(grader, responses):
  """The verdicts on responses to as many examples, which are alike."""
  examples = [dataclasses.replace(EXAMPLE, id=i) for i in range(len(responses))]
  return [(s.reward, s.status) for s in grader.grade(examples, responses)]


@pytest.mark.parametrize(
  "response,status",
  [
    ("hang", "timeout"),
    ("busy", "timeout"),
    ("raise", "error"),
    ("exit", "error"),
    ("die", "error"),
    ("memory", "error"),
  ],
)
def test_a_broken_verifier_costs_its_own_answer(response, status):
  with tasks.Grader(tasks.make("hostile/x"), timeout_s=1.0) as grader:
    verdicts = grade(grader, ["good", response, "bad", response, "good"])
    assert verdicts == [
      (1.0, "ok"),
      (0.0, status),
      (0.0, "wrong"),
      (0.0, status),
      (1.0, "ok"),
    ]
    assert grade(grader, ["good"]) == [(1.0, "ok")]


@pytest.mark.parametrize("deed", ["run", "write", "socket", "database", "unfence", "reach"])
def test_an_answer_has_no_side_effects(deed, tmp_path):
  with tasks.Grader(tasks.make("hostile/x")) as grader:
    assert grade(grader, [f"{deed} {tmp_path}/x", "good"]) == [(0.0, "error"), (1.0, "ok")]
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "words", ["nonsense", '[7, 1.0, "ok", 1.0]', '[0, 9.0, "ok", 1.0]', '{"reward": 1.0}', "[" * 9999]
)
def test_what_an_answer_says_for_the_grader_is_no_verdict(words):
  with tasks.Grader(tasks.make("hostile/x")) as grader:
    assert grade(grader, [f"speak {words}", "bad", "good"]) == [
      (0.0, "error"),
      (0.0, "wrong"),
      (1.0, "ok"),
    ]


def test_what_the_last_answer_says_for_the_grader_costs_the_next_nothing():
  with tasks.Grader(tasks.make("hostile/x")) as grader:
    assert grade(grader, ["good", 'speak [1, 1.0, "ok", 1.0]'])[0] == (1.0, "ok")
    assert grade(grader, ["good", "bad"]) == [(1.0, "ok"), (0.0, "wrong")]


def test_a_grader_that_died_between_batches_blames_no_answer():
  with tasks.Grader(tasks.make("hostile/x")) as grader:
    assert grade(grader, ["good"]) == [(1.0, "ok")]
    os.kill(grader._processes[0]._child.pid, signal.SIGKILL)
    wait_until_gone(grader._processes[0]._child.pid)
    assert grade(grader, ["good", "bad"]) == [(1.0, "ok"), (0.0, "wrong")]


def test_many_answers_go_in_several_messages(monkeypatch):
  monkeypatch.setattr(tasks.grader, "_ANSWERS_PER_MESSAGE", 3)
  with tasks.Grader(tasks.make("hostile/x")) as grader:
    responses = ["good", "bad"] * 4
    assert [reward for reward, _ in grade(grader, responses)] == [1.0, 0.0] * 4


def test_the_same_response_to_the_same_example_is_judged_once():
  other = dataclasses.replace(EXAMPLE, id=1, answer="bad")
  with tasks.Grader(tasks.make("hostile/x")) as grader:
    examples = [EXAMPLE, other, EXAMPLE, EXAMPLE, other]
    verdicts = grader.grade(examples, ["good", "good", "bad", "good", "good"])
    assert [s.reward for s in verdicts] == [1.0, 0.0, 0.0, 1.0, 0.0]
    assert grader._processes[0]._graded == 3


def test_a_busy_grader_does_not_outlive_its_parent():
  """In one long call into C the watchdog thread never runs; the kernel's alarm does."""
  script = (
    "import hostile_family\nfrom vespo_jax import tasks\n"
    "example = tasks.Example(0, 'question', 'good', '{}')\n"
    "grader = tasks.Grader(tasks.make('hostile/x'), timeout_s=2.0)\n"
    "grader.grade([example], ['good'])\n"
    "print(grader._processes[0]._child.pid, flush=True)\n"
    "grader.grade([example], ['busy'])\n"
  )
  with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as run:
    pid = int(run.stdout.readline())
    time.sleep(1.0)  # now it is in the call
    run.kill()
  wait_until_gone(pid)


def wait_until_gone(pid, seconds=20):
  deadline = time.monotonic() + seconds
  while is_running(pid):
    assert time.monotonic() < deadline
    time.sleep(0.05)


def is_running(pid):
  try:
    return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
  except psutil.NoSuchProcess:
    return False


def test_a_grader_that_cannot_start_is_an_error_and_no_verdict(monkeypatch):
  task = tasks.make("hostile/x")
  task.name = "hostile/unstartable"
  with tasks.Grader(task) as grader, pytest.raises(ChildDied, match="grader process died"):
    grade(grader, ["good"])


def test_real_answers_through_the_process():
  task = tasks.make("reasoning_gym/chain_sum", answer_format="text")
  examples = [Example(i, *problem) for i, problem in enumerate(task.generate(0, 30))]
  answers = [example.answer if i % 3 else "0.5" for i, example in enumerate(examples)]
  with tasks.Grader(task) as grader:
    rewards = [score.reward for score in grader.grade(examples, answers)]
    assert grader.grade([], []) == []
  assert rewards == [float(i % 3 > 0) for i in range(30)]


def test_several_processes_keep_the_order_and_their_troubles_apart():
  responses = [["good", "bad", "hang", "raise", "good", "die"][i % 6] for i in range(48)]
  expected = {"good": "ok", "bad": "wrong", "hang": "timeout", "raise": "error", "die": "error"}
  responses[2:] = [r if r != "hang" else "bad" for r in responses[2:]]
  with tasks.Grader(tasks.make("hostile/x"), processes=2, timeout_s=1.0) as grader:
    verdicts = grade(grader, responses)
    assert [status for _, status in verdicts] == [expected[r] for r in responses]
    assert len({process._child.pid for process in grader._processes}) == 2


def test_several_processes_work_at_a_time():
  with tasks.Grader(tasks.make("hostile/x"), processes=2) as grader:
    grade(grader, ["good"] * 32)
    started = time.monotonic()
    grade(grader, ["slow"] * 16)  # half a second each
    assert time.monotonic() - started < 6.5


def test_a_process_is_replaced_now_and_then(monkeypatch):
  monkeypatch.setattr(tasks.grader, "_ANSWERS_PER_PROCESS", 3)
  with tasks.Grader(tasks.make("hostile/x")) as grader:
    pids = set()
    for _ in range(3):
      pids.add(grader._processes[0]._child.pid)
      assert grade(grader, ["good", "bad", "good"]) == [(1.0, "ok"), (0.0, "wrong"), (1.0, "ok")]
  assert len(pids) == 3


def test_a_process_that_has_grown_is_replaced():
  """Its parent's size, which Linux counts as its own maximum, does not matter."""
  ballast = b"x" * (600 << 20)
  with tasks.Grader(tasks.make("hostile/x"), memory_gb=1.0) as grader:
    first = grader._processes[0]._child.pid
    grade(grader, ["good"])
    assert grader._processes[0]._child.pid == first
    assert grade(grader, ["grow"]) == [(0.0, "wrong")]  # it keeps 600 MB
    assert grade(grader, ["good"]) == [(1.0, "ok")]
    assert grader._processes[0]._child.pid != first
    assert grade(grader, ["memory", "good"]) == [(0.0, "error"), (1.0, "ok")]  # of 8 GB
  assert ballast


def test_closing_leaves_no_process(tmp_path):
  grader = tasks.Grader(tasks.make("hostile/x"), processes=3)
  grade(grader, ["good"] * 30)
  pids = [process._child.pid for process in grader._processes if process._child]
  grader.close()
  grader.close()
  for pid in pids:
    wait_until_gone(pid)
  with pytest.raises(RuntimeError):
    grade(grader, ["good"])


def test_a_grader_does_not_carry_jax():
  """Its memory is the answers': a limit that counts JAX's would be no limit on them."""
  program = "import sys, vespo_jax.tasks.grader_process; print('jax' in sys.modules)"
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
  assert done.stdout.strip() == "False", done.stderr
