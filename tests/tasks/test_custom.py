"""A reward by import path: what it may return, and how a wrong path is refused."""

import hostile_family  # noqa: F401  (registers the family)
import my_rewards
import pytest

from vespo_jax import tasks
from vespo_jax.tasks import Example, custom


@pytest.mark.parametrize(
  "name,responses,expected",
  [
    ("length", ["", "12", "123456"], [(0.0, "wrong"), (0.5, "ok"), (1.0, "ok")]),
    ("says_more", ["1234", "x"], [(1.0, "ok"), (0.0, "unparsed")]),
    ("too_much", ["x"], [(0.0, "error")]),
    ("raises", ["x"], [(0.0, "error")]),
    ("writes", ["{here}"], [(0.0, "error")]),
  ],
)
def test_it_scores_in_the_tasks_place(name, responses, expected, tmp_path):
  responses = [response.replace("{here}", str(tmp_path / "x")) for response in responses]
  example = Example(0, "question", "1234", "{}")
  with tasks.Grader(tasks.make("hostile/x"), reward=f"my_rewards:{name}") as grader:
    scores = grader.grade([example] * len(responses), responses)
  assert [(score.reward, score.status) for score in scores] == expected
  assert not list(tmp_path.iterdir())


def test_what_it_raises_and_prints_is_shown(capfd):
  """With the last place in its own file, whatever it called."""
  example = Example(0, "question", "1234", "{}")
  for name, told in (("raises", "KeyError('x')"), ("raises_elsewhere", "JSONDecodeError")):
    with tasks.Grader(tasks.make("hostile/x"), reward=f"my_rewards:{name}") as grader:
      grader.grade([example], ["x"])
    code = getattr(my_rewards, name).__code__
    line = max(line for _, _, line in code.co_lines() if line)
    out, err = capfd.readouterr()
    assert out == "" and f"a verifier failed: {told}" in err
    assert f"{code.co_filename!r}, line {line}\n" in err
  assert err.startswith("it is asked\n")


def test_it_is_known_by_its_path_and_its_text(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / "edited_rewards.py").write_text("def f(response, answer, metadata): return 1.0")
  one = custom.identity("edited_rewards:f")
  assert one.startswith("edited_rewards:f ") and one == custom.identity("edited_rewards:f")
  (tmp_path / "edited_rewards.py").write_text("def f(response, answer, metadata): return 0.0")
  assert one != custom.identity("edited_rewards:f") and custom.identity("") == ""


@pytest.mark.parametrize(
  "path,words",
  [
    ("my_rewards", "must be like 'package.module:function'"),
    ("my_rewards:", "must be like"),
    ("my_rewards:a.b", "must be like"),
    ("no_such_module:f", "no_such_module cannot be imported: ModuleNotFoundError"),
    ("my_rewards:f", "my_rewards has no function 'f'"),
    ("my_rewards:NOT_A_FUNCTION", "has no function"),
    ("my_rewards:of_two", r"callable as of_two\(response, answer, metadata\)"),
  ],
)
def test_a_path_that_is_no_reward_is_refused(path, words):
  with pytest.raises(ValueError, match=words):
    custom.load(path)
