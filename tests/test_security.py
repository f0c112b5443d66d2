"""Every test that SECURITY.md names exists, and is in the suite that it says."""

import ast
import re
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
NAMED = re.compile(r"`(tests/[\w/]+\.py)?::(\w+)`")


def functions(path):
  """The functions of a file, and whether each is slow in all its cases."""
  tree = ast.parse((REPOSITORY / path).read_text())
  return {
    node.name: any(ast.unparse(mark) == "pytest.mark.slow" for mark in node.decorator_list)
    for node in tree.body
    if isinstance(node, ast.FunctionDef)
  }


def test_what_shows_the_claims_exists():
  text = (REPOSITORY / "SECURITY.md").read_text()
  path, names = "", 0
  for found in NAMED.finditer(text):
    path, names = found[1] or path, names + 1
    known = functions(path)
    assert found[2] in known, f"{path}::{found[2]}"
    said_slow = text[: found.start()].endswith("slow: ")
    assert known[found[2]] == said_slow, found[2]
  assert names > 35
