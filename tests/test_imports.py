"""The import order of the rooms, held by parsing every file."""

import ast
from pathlib import Path

import vespo_jax

PACKAGE = Path(vespo_jax.__file__).parent

# Lowest first; a module imports from its own row or from rows before it.
ROOMS = [
  {
    *("types", "registry", "files", "hosts", "processes", "memory", "metrics", "tensorboard"),
    "exports",
    "sandbox",
  },
  {"objectives", "advantages", "diagnostics"},
  {"models", "sharding", "chat", "tokenizers"},
  {"weights", "tasks", "sampler"},
  {"runtime"},
  {"learner"},
  {"evaluation", "report", "supervised"},
  {
    "config_rules",
    "config_file",
    "config_tasks",
    "config_replay",
    "config_flags",
    "config_policy",
    "config",
    "config_supervised",
    "problem_sets",
    "parts",
    "training",
    "rundirs",
    "launch",
    "fine_tuning",
    "rewriting",
    "command",
    "train",
    "sft",
    "rewrite",
    "replay_failure",
    "subjects",
    "evaluate_flags",
    "evaluate",
    "conversation",
    "interactive",
    "sample",
    "convert",
    "data",
  },
]
RANK = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms}
# models.load and models.save are public names of a room above, reached when they are called
ALLOWED = {("models/__init__.py", "weights")}
HEAVY = {
  "ray",
  "transformers",
  "gguf",
  "math_verify",
  "reasoning_gym",
  "tensorflow_datasets",
  "tensorboardX",
}
PURE = ("objectives", "advantages", "diagnostics", "models")
IO = {"os", "io", "pathlib", "socket", "subprocess", "json", "logging"}


def imports(path):
  """(module, is at the top of the file) of every import in a file."""
  tree = ast.parse(path.read_text())
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
      continue
    for name in names:
      yield name, node in tree.body


def room_of(path):
  return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_rooms_import_one_way():
  wrong = []
  for path in sorted(PACKAGE.rglob("*.py")):
    room, relative = room_of(path), str(path.relative_to(PACKAGE))
    if room == "__init__":
      continue
    assert room in RANK, f"{relative}: give its room a place in the order"
    for name, _ in imports(path):
      parts = name.split(".")
      if parts[0] != "vespo_jax" or len(parts) < 2 or parts[1] == "__version__":
        continue
      if RANK[parts[1]] > RANK[room] and (relative, parts[1]) not in ALLOWED:
        wrong.append(f"{relative} imports {name}")
  assert not wrong, wrong


def test_heavy_packages_are_imported_in_one_place_and_lazily():
  for path in sorted(PACKAGE.rglob("*.py")):
    for name, at_top in imports(path):
      package = name.split(".")[0]
      if package in HEAVY:
        # the module that runs only as the builder's own process may import at its top
        assert not at_top or path.name == "build.py", f"{path.name} imports {name} at its top"
        assert room_of(path) in {"tasks", "weights", "runtime", "tensorboard"}, (
          f"{path} imports {name}"
        )


def test_the_mathematics_does_no_io():
  for path in sorted(PACKAGE.rglob("*.py")):
    if room_of(path) in PURE:
      found = {name.split(".")[0] for name, _ in imports(path)} & IO
      assert not found, f"{path.name} imports {found}"


def test_files_are_short():
  for path in sorted(PACKAGE.rglob("*.py")):
    lines = len(path.read_text().splitlines())
    assert lines <= 400, f"{path.name} has {lines} lines"
  entries = ("train", "sft", "rewrite", "replay_failure", "evaluate", "sample", "data")
  for name in (*entries, "report/__main__"):
    path = PACKAGE / f"{name}.py"
    if path.is_file():
      assert len(path.read_text().splitlines()) <= 90, name
