"""The reasoning-gym adapter: names, options, verdicts; all datasets in the slow suite."""

import itertools

import pytest

from vespo_jax import tasks
from vespo_jax.tasks import Example, exact_json
from vespo_jax.tasks import reasoning_gym as adapter

SUMS = tasks.make("reasoning_gym/chain_sum", answer_format="text")


def first(task, count, seed=0):
  return [Example(i, *problem) for i, problem in enumerate(task.generate(seed, count))]


@pytest.mark.parametrize(
  "response,reward,status",
  [
    ("{answer}", 1.0, "ok"),
    (" {answer}\n", 1.0, "ok"),
    ("The answer is {answer}", 0.0, "wrong"),  # the package's scorer pays for the substring
    ("1{answer}", 0.0, "wrong"),
    ("nonsense", 0.0, "wrong"),
    ("", 0.0, "unparsed"),
  ],
)
def test_verdicts(response, reward, status):
  for example in first(SUMS, 20):
    score = SUMS.score(example, response.format(answer=example.answer))
    assert (score.reward, score.status) == (reward, status), example


@pytest.mark.parametrize("answer_format", ["text", "tag", "boxed", "last_line", "number"])
def test_the_solution_is_rewarded(answer_format):
  task = tasks.make("reasoning_gym/chain_sum", answer_format=answer_format)
  for example in first(task, 5):
    assert task.score(example, task.solution(example)).reward == 1.0


def test_a_substring_is_worth_nothing_though_the_scorer_pays_for_it():
  example = first(SUMS, 1)[0]
  score = SUMS.score(example, f"The answer is {example.answer}")
  assert score.reward == 0.0 and 0 < score.raw < 1


def test_the_answer_is_extracted_first():
  task = tasks.make("reasoning_gym/chain_sum")
  example = first(task, 1)[0]
  assert task.prompt(example).endswith("<answer> and </answer>.")
  assert task.score(example, f"Well... <answer>{example.answer}</answer>").reward == 1.0
  assert task.score(example, example.answer).status == "unparsed"


@pytest.mark.parametrize(
  "name,options,message",
  [
    ("reasoning_gym/chain_sun", {}, "chain_sun.*did you mean 'chain_sum'"),
    ("reasoning_gym/composite", {}, "'composite' cannot be used: it mixes"),
    ("reasoning_gym/codeio", {}, "'codeio' cannot be used: it executes"),
    ("reasoning_gym/coin_flip", {}, "'coin_flip' cannot be used: its scorer accepts"),
    ("reasoning_gym/complex_arithmetic", {}, "'complex_arithmetic' cannot be used: .*nan"),
    ("reasoning_gym/letter_jumble", {}, "'letter_jumble' cannot be used: its scorer accepts"),
    ("reasoning_gym/propositional_logic", {}, "'propositional_logic' cannot be used: .*premise"),
    ("gym/chain_sum", {}, "unknown task family 'gym'.*reasoning_gym"),
    ("reasoning_gym/chain_sum", {"min_term": 2}, "min_term"),
    ("reasoning_gym/chain_sum", {"min_terms": 5, "max_terms": 2}, "max_terms"),
    ("reasoning_gym/chain_sum", {"answer_format": "xml"}, "answer_format='xml'.*boxed"),
    ("reasoning_gym/chain_sum", {"answer_format": {}}, "answer_format={} is not known"),
    ("reasoning_gym/chain_sum", {"name": "x"}, "'name'"),
    ("reasoning_gym/spell_backward", {"data_file": "abc"}, "not accepted: .*abc"),
  ],
)
def test_bad_names_and_options_are_refused(name, options, message):
  with pytest.raises(ValueError, match=message):
    tasks.make(name, **options)


@pytest.mark.parametrize("dataset", ["word_ladder", "gsm_symbolic"])
def test_problems_do_not_end_with_an_instance_of_the_dataset(dataset, monkeypatch):
  """word_ladder refuses instances of over 20,000; gsm_symbolic draws once per instance."""
  monkeypatch.setattr(adapter, "_CHUNK", 4)
  task = tasks.make(f"reasoning_gym/{dataset}")
  problems = list(itertools.islice(task.generate(0, 100_000), 12))
  assert len(set(problems)) == 12


@pytest.mark.parametrize(
  "answer,status",
  [
    ("28080", "ok"),
    ("28,080", "ok"),
    ("$28080.0", "ok"),
    ("28080 m2", "ok"),
    ("28080 = 30 * 936", "ok"),
    ("-28080", "wrong"),
    ("28", "wrong"),
    ("1 2 28080", "wrong"),
  ],
)
def test_numbers_of_gsm_symbolic_are_read_as_such(answer, status):
  """The package's scorer takes the digits of "28,080" apart, and knows no sign."""
  task = tasks.make("reasoning_gym/gsm_symbolic")
  example = tasks.Example(0, "question", "28080", "{}")
  assert task.score(example, f"<answer>{answer}</answer>").status == status


def test_seeds_share_no_problems_and_seed_0_counts_from_0(monkeypatch):
  """reasoning-gym draws problem i of a seed from the sum of the two."""
  seeds = []
  create = adapter.ReasoningGymTask._create

  def noted(self, *, seed, size):
    seeds.extend(range(seed, seed + size))
    return create(self, seed=seed, size=size)

  monkeypatch.setattr(adapter.ReasoningGymTask, "_create", noted)
  assert list(SUMS.generate(0, 1500))[1499][0] == create(SUMS, seed=1499, size=1)[0]["question"]
  assert seeds == list(range(2000))
  for seed in (1, 2, 700, 2**40):
    list(SUMS.generate(seed, 1500))
  assert len(set(seeds)) == 5 * 2000 and max(seeds) < 2**32  # what numpy takes for a seed


def test_a_problem_without_an_answer_that_can_be_said_is_left_out():
  problems = list(tasks.make("reasoning_gym/ab", length=2).generate(0, 200))
  assert 0 < len(problems) < 200 and all(answer for _, answer, _ in problems)


def test_an_integral_that_sympy_could_not_find_is_no_answer():
  """The question stays: what is right is judged by its derivative."""
  task = tasks.make("reasoning_gym/intermediate_integration", answer_format="text")
  examples = first(task, 12)
  (unsolved, *_) = [example for example in examples if not example.answer]
  assert "Integral(" in unsolved.metadata and task.solution(unsolved) == ""
  assert all("Integral(" not in example.answer for example in examples)


def test_metadata_keeps_tuples_and_keys():
  value = {"a": (1, [2, (3,)]), "b": {1: "x", (2, 3): None}, "c": {"d": 1.5, "e": True}}
  back = exact_json.loads(exact_json.dumps(value))
  assert back == value
  assert isinstance(back["a"], tuple) and isinstance(back["a"][1][1], tuple)


@pytest.mark.slow
def test_every_dataset_builds_twice_alike_and_its_answers_are_right(tmp_path):
  import reasoning_gym

  problems = []
  for dataset in sorted(set(reasoning_gym.factory.DATASETS) - set(adapter._REFUSED)):
    task = tasks.make(f"reasoning_gym/{dataset}", answer_format="text")
    sizes = dict(seed=3, train_size=8, test_size=4)
    one = tasks.open_splits(task, data_dir=tmp_path / "one", **sizes)
    other = tasks.open_splits(task, data_dir=tmp_path / "other", **sizes)
    examples = [*one.train, *one.test]
    if examples != [*other.train, *other.test]:
      problems.append(f"{dataset} is not deterministic")
    solved = [example for example in examples if example.answer]
    with tasks.Grader(task) as grader:
      right = grader.grade(solved, [example.answer for example in solved])
      paid = {kind: paid_for(grader, examples, texts) for kind, texts in nonsense(examples).items()}
    if any(score.status != "ok" for score in right):
      problems.append(f"{dataset}: its own answers are {[score.status for score in right]}")
    problems += [f"{dataset} rewards {kind}" for kind, part in paid.items() if part > 0.5]
  assert not problems, problems


def nonsense(examples):
  """Responses to each example by kind, of which none is right for most of them."""
  constants = ("6*4*1*1 or nothing", "0", "1", "nan", "inf")
  others = [*examples[1:], examples[0]]
  return {text: [text] * len(examples) for text in constants} | {
    "the question": [example.question for example in examples],
    "the answer to another": [other.answer for other in others],
  }


def paid_for(grader, examples, texts):
  """The fraction of responses that are rewarded and are not the answer."""
  scores = grader.grade(examples, texts)
  wrong = [
    text.casefold() != example.answer.casefold()
    for example, text in zip(examples, texts, strict=True)
  ]
  return sum(s.reward for s, bad in zip(scores, wrong, strict=True) if bad) / len(examples)
