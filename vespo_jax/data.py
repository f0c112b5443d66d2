"""Prepares datasets for training and evaluation:

  python -m vespo_jax.data prepare NAME --source=FILE_OR_DIR [--data_dir=runs/data] [--split=SPLIT]
  python -m vespo_jax.data list [--data_dir=runs/data]

The files are the publisher's own; `task.name=dataset/NAME` then uses them. Exit codes: 0, 1 if a
process or the disk failed, 2 if the name or a file is not good, with one message.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vespo_jax.metrics import printable
from vespo_jax.processes import ChildDied
from vespo_jax.tasks import layouts, prepare


def main(argv: list[str]) -> int:
  """Runs one command line; returns the exit code."""
  arguments = _parser().parse_args(argv[1:])
  try:
    arguments.run(arguments)
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except (ChildDied, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m vespo_jax.data",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  commands = parser.add_subparsers(required=True, metavar="COMMAND")
  one = commands.add_parser("prepare", help="read the files of a dataset")
  one.add_argument("name", metavar="NAME", help="of the dataset; `list` lists them")
  one.add_argument(
    "--source",
    action="append",
    default=[],
    metavar="FILE_OR_DIR",
    help="Parquet, JSON Lines or JSON, or a folder of them; several times for several; not needed "
    "for what an installed package ships",
  )
  one.add_argument(
    "--split",
    default="",
    choices=prepare.SPLITS,
    help="that all rows belong to, where the names of the files do not say it",
  )
  one.set_defaults(run=_prepare)
  all_of_them = commands.add_parser("list", help="what is known, and what is prepared")
  all_of_them.set_defaults(run=_list)
  for command in (one, all_of_them):
    command.add_argument("--data_dir", default="runs/data", help="where datasets are kept")
  return parser


def _prepare(arguments: argparse.Namespace) -> None:
  directory = prepare.prepare(
    arguments.name, arguments.source, data_dir=arguments.data_dir, split=arguments.split
  )
  print(printable(str(prepare.Report.load(directory))))
  print(f"prepared in {directory}; use it with --config.task.name=dataset/{arguments.name}")


def _list(arguments: argparse.Namespace) -> None:
  for layout in layouts.LAYOUTS:
    print(f"{layout.name:<15} {layout.verifier:<12} {layout.publisher}")
  for directory in prepare.prepared(Path(arguments.data_dir)):
    report = prepare.Report.load(directory)
    kept = ", ".join(f"{count} {split}" for split, count in report.kept.items())
    print(printable(f"prepared: {directory}: {kept}"))


if __name__ == "__main__":
  sys.exit(main(sys.argv))
