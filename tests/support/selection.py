"""Which share of the slow tests runs: chosen by the commit, so that what is green today is green tomorrow."""

import os
import subprocess
from functools import cache
from pathlib import Path

ALL = os.environ.get("WHENCE_TEST_ALL") == "1"


@cache
def commit_number() -> int:
    """A number of the commit that is checked out; 0 outside of a repository."""
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    return int(found.stdout[:8], 16) if found.returncode == 0 and found.stdout.strip() else 0


def in_turn(items: list, parts: int) -> list:
    """One of `parts` parts of the items, which one the commit decides; all of them in `make test-all`."""
    return items if ALL else items[commit_number() % parts :: parts]
