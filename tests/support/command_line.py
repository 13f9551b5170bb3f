"""The command line as a user runs it."""

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def command(*args: str, cwd: Path, stdin: str | None = None) -> subprocess.CompletedProcess:
    """The command line, with what this environment needs to import torchvision."""
    code = f"import sys; sys.path.insert(0, {str(TESTS)!r}); import support.torchvision_operators; "
    code += "from whence.frontends.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *args], cwd=cwd, input=stdin, capture_output=True, text=True, timeout=300
    )
