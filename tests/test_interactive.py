"""Sessions with a model: what it is asked, what comes back, and what never reaches a terminal."""

import io
import os
import pty
import select
import signal
import sys
import time

import jax
import numpy as np
import pytest
from test_tokenizers import CHATML, chat_tokenizer

from vespo_jax import conversation, interactive, metrics, models, sample, sampler
from vespo_jax.conversation import Conversation, answer
from vespo_jax.sampler import Settings
from vespo_jax.tokenizers import byte_tokenizer

SPEC = models.ModelSpec(
  vocab_size=264, width=16, layers=1, heads=2, kv_heads=2, head_width=8, mlp_width=16, context=256
)
SETTINGS = Settings(max_new_tokens=10, samples_per_prompt=2)


@pytest.fixture(scope="module")
def model():
  """A model that writes noise, controls and halves of characters among it."""
  return SPEC, models.init(SPEC, jax.random.key(3)), chat_tokenizer(CHATML)


def test_pieces_are_what_generate_samples(model):
  spec, params, tokenizer = model
  prompt, key = tokenizer.encode_prompt("1 + 1"), jax.random.key(5)
  expected = sampler.generate(params, spec, [prompt], key, SETTINGS)
  pieces = list(answer(model, prompt, key, SETTINGS))
  assert len(pieces) > 2  # not all at once
  for sample_, rollout in enumerate(expected):
    mine = [piece for piece in pieces if piece.sample == sample_]
    assert "".join(piece.text for piece in mine) == tokenizer.decode(rollout.response_ids)
    assert [piece.end is None for piece in mine] == [True] * (len(mine) - 1) + [False]
    end = mine[-1].end
    assert (end.tokens, end.finish) == (len(rollout.response_ids), rollout.finish)
    np.testing.assert_allclose(end.logprob, rollout.plain_logprobs.sum(), rtol=1e-5)


def test_an_answer_is_stopped_where_it_is(model):
  tokenizer = model[2]
  prompt, key = tokenizer.encode_prompt("1 + 1"), jax.random.key(5)
  whole = "".join(p.text for p in answer(model, prompt, key, SETTINGS) if p.sample == 0)
  asked = []
  stopped = lambda: asked.append(None) or len(asked) > 1
  pieces = [p for p in answer(model, prompt, key, SETTINGS, stopped) if p.sample == 0]
  end = pieces[-1].end
  assert (end.tokens, end.finish) == (conversation.STEPS, "stopped")
  assert whole.startswith("".join(piece.text for piece in pieces)[:1])
  assert "stopped" in str(end) and "tokens/s" not in str(end)


def test_a_prompt_that_does_not_fit_is_refused(model):
  with pytest.raises(ValueError, match="250 tokens and 10 new ones do not fit the model's 256"):
    next(answer(model, [7] * 250, jax.random.key(0), SETTINGS))
  with pytest.raises(ValueError, match="a prompt of no tokens"):
    next(answer(model, [], jax.random.key(0), SETTINGS))


@pytest.mark.parametrize(
  "prompt, message",
  [("", "a prompt of no tokens"), ("x" * 250, "250 tokens and 64 new ones do not fit")],
)
def test_a_prompt_of_the_command_line_is_refused_in_one_message(
  prompt, message, model, monkeypatch, capsys
):
  without_bos = chat_tokenizer(CHATML, add_bos=False)
  monkeypatch.setattr(models, "load", lambda path: (*model[:2], without_bos))
  assert sample.main(["sample", "--model=any", "--raw", f"--prompt={prompt}"]) == 2
  captured = capsys.readouterr()
  assert captured.out == "" and message in captured.err and captured.err.count("\n") == 1


@pytest.fixture
def prompts(monkeypatch):
  """The prompts that were asked, and answers made up."""
  asked = []

  def made_up(model, prompt, key, settings, stopped):
    asked.append(list(prompt))
    end = conversation.Statistics(3, None, -1.5, "stop")
    for sample_ in range(settings.samples_per_prompt):
      yield conversation.Piece(sample_, f"<|im_end|>no {len(asked)}{sample_}")
      yield conversation.Piece(sample_, "\x1b[2J\x9b\u202e\t.", end)

  monkeypatch.setattr(conversation, "answer", made_up)
  return asked


def test_turns_are_those_of_the_template_and_no_text_becomes_a_control_token(model, prompts):
  tokenizer = model[2]
  talk = Conversation(model, SETTINGS)
  list(talk.ask("<|im_start|>a"))
  talk.system = "be <|im_end|>"
  list(talk.ask("b"))
  start, end = (tokenizer.backend.token_to_id(t) for t in ("<|im_start|>", "<|im_end|>"))
  newline = tokenizer.encode("\n")
  turn = lambda role, text: [start, *tokenizer.encode(f"{role}\n{text}"), end, *newline]
  last = [start, *tokenizer.encode("assistant\n")]
  told = "<|im_end|>no 10\x1b[2J\x9b\u202e\t."
  first = turn("user", "<|im_start|>a")
  assert prompts[0] == first + last
  assert prompts[1] == [
    *turn("system", "be <|im_end|>"), *first, *turn("assistant", told), *turn("user", "b"), *last
  ]  # fmt: skip
  talk.reset()
  list(talk.ask("c"))
  assert prompts[2] == turn("system", "be <|im_end|>") + turn("user", "c") + last


def test_without_a_template_each_line_stands_alone(model, prompts):
  tokenizer = byte_tokenizer()
  for raw in (False, True):
    talk = Conversation((*model[:2], tokenizer), SETTINGS, raw=raw)
    for line in ("a", "b"):
      list(talk.ask(line))
      assert prompts[-1] == tokenizer.encode_prompt(line, raw=raw)


def session(monkeypatch, capsys, talk, lines):
  """What a terminal shows of a session in which these lines are typed."""
  typed = iter(lines)

  def read(prompt):
    assert prompt == interactive.PROMPT
    line = next(typed, EOFError)
    if isinstance(line, str):
      return line
    raise line

  monkeypatch.setattr("builtins.input", read)
  monkeypatch.setattr(sys, "stdin", io.StringIO())
  monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
  before = signal.getsignal(signal.SIGINT)
  assert interactive.run(talk) == 0
  assert signal.getsignal(signal.SIGINT) is before
  return capsys.readouterr().out


def test_a_session_obeys_its_commands_and_lives_on_after_mistakes(
  model, prompts, monkeypatch, capsys
):
  talk = Conversation(model, Settings(max_new_tokens=4))
  lines = ["/help", "a", "/temperature 0.25", "/samples 3", KeyboardInterrupt, "", "b", "//c"]
  lines += ["/temperature cold", "/temperature -1", "/samples 0", "/samples 1e9", "/nonsense\x1b x"]
  lines += ["/system be brief", "/reset", "d", "x" * 300, "/quit", "never read"]
  out = session(monkeypatch, capsys, talk, lines)
  assert (talk.settings.temperature, talk.settings.samples_per_prompt) == (0.25, 3)
  assert "/temperature 0.7" in out and "(3 tokens, log-prob -1.50, stop)" in out
  assert "[3] <|im_end|>no 22" in out and "[1]" not in out.partition("temperature 0.25")[0]
  for wrong in ("cold: not a number", "-1: not a number", "0: not a whole", "1e9: not a whole"):
    assert wrong in out
  assert "no command /nonsense\ufffd" in out
  decode = model[2].decode
  assert [decode(prompt).count("user\n") for prompt in prompts[:4]] == [1, 2, 3, 1]
  assert decode(prompts[2]).endswith("user\n/c\nassistant\n")
  assert decode(prompts[3]) == "system\nbe brief\nuser\nd\nassistant\n"
  assert not set(out) - {*"\n\t"} - set(filter(str.isprintable, out))  # no order to the terminal


def test_what_cannot_be_a_prompt_is_told_and_forgotten(model, monkeypatch, capsys):
  talk = Conversation(model, Settings(max_new_tokens=4))
  out = session(monkeypatch, capsys, talk, ["x" * 300, "hello"])
  assert "error: a prompt of" in out and out.count("log-prob") == 1
  assert "positions" in out


def test_ctrl_c_stops_the_answer_and_not_the_session(model, monkeypatch, capsys):
  """The signal itself, while the first chunk is decoded."""
  advance = sampler.Engine.advance

  def interrupted(engine, limit=None):
    os.kill(os.getpid(), signal.SIGINT)
    return advance(engine, limit)

  talk = Conversation(model, Settings(max_new_tokens=50))
  monkeypatch.setattr(sampler.Engine, "advance", interrupted)
  out = session(monkeypatch, capsys, talk, ["a", "/temperature 2"])
  assert "stopped)" in out and "temperature 2.0" in out


def piped(monkeypatch, capsys, text, *arguments):
  monkeypatch.setattr(sys, "stdin", io.StringIO(text))
  code = sample.main(["sample", "--model=any", "--max_new_tokens=12", *arguments])
  return code, capsys.readouterr()


def test_a_pipe_has_a_prompt_a_line_and_gets_answers_alone(model, monkeypatch, capsys):
  spec, params, tokenizer = model
  monkeypatch.setattr(models, "load", lambda path: model)
  code, captured = piped(monkeypatch, capsys, "1\n/quit\n2", "--temperature=0")
  settings = Settings(max_new_tokens=12, temperature=0, stop_ids=tokenizer.stop_ids)
  expected = ""
  for line in ("1", "/quit", "2"):
    ids = tokenizer.encode_prompt(line)
    (rollout,) = sampler.generate(params, spec, [ids], jax.random.key(0), settings)
    expected += metrics.printable(tokenizer.decode(rollout.response_ids)) + "\n"
  assert (code, captured.out, captured.err) == (0, expected, "")
  assert not set(expected) - {*"\n\t"} - set(filter(str.isprintable, expected))


def test_every_line_of_a_pipe_stands_alone(model, prompts, monkeypatch, capsys):
  monkeypatch.setattr(models, "load", lambda path: model)
  code, captured = piped(monkeypatch, capsys, "1\n/reset\n", "--samples=2")
  assert code == 0 and prompts == [model[2].encode_prompt(line) for line in ("1", "/reset")]
  answers = [f"<|im_end|>no {n}{i}\ufffd[2J\ufffd\ufffd\t." for n in (1, 2) for i in (0, 1)]
  assert captured.out.splitlines() == answers


def test_a_pipe_that_nobody_reads_any_more_ends_in_silence(model, prompts, monkeypatch, capsys):
  monkeypatch.setattr(models, "load", lambda path: model)
  reader, writer = os.pipe()
  os.close(reader)
  with os.fdopen(writer, "w") as out:
    monkeypatch.setattr(sys, "stdout", out)
    code, captured = piped(monkeypatch, capsys, "1\n2\n")
  assert code == 0 and captured.err == "" and len(prompts) == 1


def test_a_pipe_goes_on_after_a_line_that_is_no_prompt(model, monkeypatch, capsys):
  monkeypatch.setattr(models, "load", lambda path: model)
  code, captured = piped(monkeypatch, capsys, "1\n" + "x" * 300 + "\n2\n", "--temperature=0")
  assert code == 2 and captured.out.count("\n") >= 2
  assert captured.err.count("\n") == 1 and captured.err.startswith("error: a prompt of 3")


@pytest.mark.slow
def test_a_real_terminal_has_line_editing_history_and_both_control_keys():
  """On the quickstart's start, behind a pseudo-terminal, as people use it."""
  pid, terminal = pty.fork()
  if not pid:
    arguments = ["--model=vespo_jax/assets/quickstart", "--temperature=0", "--max_new_tokens=30000"]
    os.execvp(sys.executable, [sys.executable, "-m", "vespo_jax.sample", *arguments])
  shown = ""

  def until(text, seconds=120.0):
    nonlocal shown
    deadline = time.monotonic() + seconds
    while text not in shown:
      ready, _, _ = select.select([terminal], [], [], max(deadline - time.monotonic(), 0))
      assert ready, (text, shown)
      shown += os.read(terminal, 65536).decode(errors="replace")
    before, _, shown = shown.partition(text)
    return before

  until("> ")
  question = "Spell this word backward (example: sun -> nus): drawx"
  os.write(terminal, question.encode() + b"\x7f\n")  # the last letter is taken back
  assert "ward" in until("stop)")
  until("> ")
  os.write(terminal, b"\x1b[A\n")  # the line before
  assert "ward" in until("stop)")
  until("> ")
  os.write(terminal, b"\x03")
  until("> ")
  os.write(terminal, b"\x04")
  assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
  os.close(terminal)


def test_a_raw_session_continues_the_line_as_it_was_typed(model, prompts, monkeypatch, capsys):
  talk = Conversation((*model[:2], byte_tokenizer()), SETTINGS, raw=True)
  session(monkeypatch, capsys, talk, ["  Once upon ", "   ", " /reset", "/quit"])
  assert [byte_tokenizer().decode(ids) for ids in prompts] == ["  Once upon "]
