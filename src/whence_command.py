"""The `whence` command, apart from the library: an interrupt while torch is imported ends it without a traceback."""

import sys


def main() -> None:
    try:
        from whence.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)
