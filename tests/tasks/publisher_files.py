"""A few rows of every published dataset, in its publisher's columns, and files of them."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
THINK = "Let's think step by step and output the final answer within \\boxed{}."
DAPO = (
  "Solve the following math problem step by step. The last line of your response should be of the "
  "form Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n{}\n\n"
  'Remember to put your answer on its own line after "Answer:".'
)
EURUS_SYSTEM = "\nWhen tackling complex reasoning tasks, you have access to the following actions."
EURUS_END = (
  "\n\nWrite Python code to solve the problem. Present the code in \n```python\nYour code\n```\n"
  "at the end."
)


def gsm8k(n, start=0):
  return [
    {
      "question": f"Ann has {1000 + i} pens and buys {i}. How many are there?",
      "answer": f"She has {1000 + i}+{i}=<<{1000 + i}+{i}={1000 + 2 * i}>>{1000 + 2 * i} pens.\n"
      f"#### {1000 + 2 * i:,}",
    }
    for i in range(start, start + n)
  ]


def dapo(question, answer, index):
  return {
    "data_source": "math_dapo",
    "prompt": [{"content": DAPO.format(question), "role": "user"}],
    "ability": "MATH",
    "reward_model": {"ground_truth": answer, "style": "rule-lighteval/MATH_v2"},
    "extra_info": {"index": index},
  }


def eurus(question, tests, ability="code"):
  return {
    "data_source": "codeforces" if ability == "code" else "numina_olympiads",
    "prompt": [
      {"content": EURUS_SYSTEM, "role": "system"},
      {"content": question + EURUS_END, "role": "user"},
    ],
    "ability": ability,
    "reward_model": {"ground_truth": tests, "style": "rule"},
    "extra_info": {"index": 0, "split": "dummy"},
  }


ECHO = json.dumps({"inputs": ["3\n", "4\n"], "outputs": ["3\n", "4\n"]})
FLIPS = json.dumps({"fn_name": "minFlips", "inputs": [["01010101"], ["11"]], "outputs": [[0], [1]]})
MATH500 = {
  "problem": "Convert the point $(0,3)$ to polar coordinates.",
  "solution": "We have that $r = 3$ and $\\theta = \\frac{\\pi}{2}$.",
  "answer": "\\left( 3, \\frac{\\pi}{2} \\right)",
  "subject": "Precalculus",
  "level": 2,
  "unique_id": "test/precalculus/807.json",
}
AIME_H4 = {
  "id": 60,
  "problem": "Every morning Aya goes for a walk.",
  "solution": "It is 204 minutes.",
  "answer": "204",
  "url": "https://artofproblemsolving.com/wiki",
  "year": "2024",
}
AIME_MAXWELL = {
  "ID": "2024-II-4",
  "Problem": "Let $x,y$ and $z$ be positive.",
  "Solution": "Denote them by a, b and c.",
  "Answer": 33,
}
AIME25 = {"problem": "Find the sum of all integer bases $b>9$.", "answer": "70", "id": "0"}
AMC23 = {"id": 0, "question": "Cities A and B are 45 miles apart.", "answer": "27", "url": "u"}
DEEPSCALER = {"problem": "What is $1+1$?", "answer": "2", "solution": "Add them."}
HUMANEVAL = {
  "task_id": "HumanEval/53",
  "prompt": '\n\ndef add(x: int, y: int):\n  """Add two numbers x and y\n  """\n',
  "canonical_solution": "  return x + y\n",
  "entry_point": "add",
  "test": "def check(candidate):\n  assert candidate(2, 3) == 5\n",
}
MBPP = {
  "task_id": 2,
  "code": "def shared(a, b):\n  return set(a) & set(b)",
  "prompt": "Write a function to find the shared elements from the given two lists.",
  "source_file": "Benchmark Questions Verification V2.ipynb",
  "test_imports": [],
  "test_list": ["assert shared([1], [1, 2]) == {1}", "assert shared([1], [2]) == set()"],
  "test": "inputs = [[[1], [1, 2]]]\nresults = [{1}]\n"
  "for given, wanted in zip(inputs, results):\n  assert shared(*given) == wanted\n",
}
CHAMP = {
  "identifier": "P_Inequality_1",
  "_raw_text": "Find @@x@@.",
  "_text": "Find x.",
  "category": "Inequality",
  "solution": {"steps": [{"_text": "It is 1.", "_raw_text": "It is 1.", "ch_idxs": []}]},
  "_raw_answer": "1",
  "_answer": "1",
  "ch_list": [],
  "fws_annotations": {},
  "conversations": {"GPT-4|0-Shot": {"messages": []}},
}


def write(path, rows):
  """Writes rows as what the name of a file says."""
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.suffix == ".parquet":
    pq.write_table(pa.Table.from_pylist(rows), path)
  elif path.suffix == ".json":
    path.write_text(json.dumps(rows))
  else:
    data = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
  return path
