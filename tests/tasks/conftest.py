import os
import sys
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _children_can_import_the_test_family(monkeypatch):
  here = str(Path(__file__).parent)
  monkeypatch.syspath_prepend(here)
  path = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
  monkeypatch.setenv("PYTHONPATH", path)
  assert here in sys.path
