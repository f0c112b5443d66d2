import pytest

from vespo_jax.tasks.extraction import FORMATS, extract, instruct, respond


@pytest.mark.parametrize(
  "answer_format,response,answer",
  [
    ("text", "  42\n", "42"),
    ("tag", "I think <answer>1</answer>, no: <answer> 42 </answer>.", "42"),
    ("tag", "42", None),
    ("tag", "<answer>42", None),
    ("tag", "</answer><answer>42", None),
    ("boxed", r"\boxed{1} then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    ("boxed", r"\boxed{\frac{1}{2}", None),
    ("boxed", "42", None),
    ("tag", "<answer>42</answer> as I said </answer>", "42"),
    ("boxed", r"\boxed{42}, so \boxed{\frac{1}{2}", "42"),
    ("boxed", r"\boxed{\left\{ 1 \right.}", r"\left\{ 1 \right."),
    ("boxed", r"{ } } \boxed{a \boxed{b} c}", "b"),
    ("last_line", "first\n42\n\n", "42"),
    ("last_line", "\n", None),
    ("number", "5 - 9 = -4.", "-4"),
    ("number", "It is 7, no: 1,234.50 apples", "1,234.50"),
    ("number", "5 - 9 -", "9"),
    ("number", "none", None),
  ],
)
def test_extract(answer_format, response, answer):
  assert extract(response, answer_format) == answer


@pytest.mark.parametrize("answer_format", FORMATS)
@pytest.mark.parametrize(
  "piece", ["{", "}", "\\boxed{", "<answer>", "</answer>", "\n", "x", "-", "1", "1,", "1,234"]
)
def test_long_hostile_text_is_read_in_one_pass(answer_format, piece):
  """A quadratic scan of these 3 MB takes minutes at the least: finishing is the assertion."""
  text = piece * (3_000_000 // len(piece))
  extract(text, answer_format)
  answered = f"{text}\n<answer>7</answer>\n\\boxed{{7}}\n7"
  assert extract(answered, answer_format) == (answered.strip() if answer_format == "text" else "7")


@pytest.mark.parametrize("answer_format", FORMATS)
@pytest.mark.parametrize("answer", ["42", "-1,234.5"])
def test_the_answer_of_a_response_is_found(answer_format, answer):
  assert extract(respond(answer, answer_format), answer_format) == answer


def test_the_prompt_says_where_the_answer_belongs():
  assert instruct("1 + 1 =", "text") == "1 + 1 ="
  assert "<answer>" in instruct("1 + 1 =", "tag")
  assert "\\boxed{}" in instruct("1 + 1 =", "boxed")
