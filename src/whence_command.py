"""The `whence` command, apart from the library: an interrupt while torch is imported ends it without a traceback."""

import os
import signal
import sys
from typing import Any


def main() -> None:
    try:
        before = signal.signal(signal.SIGINT, _leave)  # an import may swallow a KeyboardInterrupt
        from whence.frontends.cli import main as run

        signal.signal(signal.SIGINT, before)
        run()
    except KeyboardInterrupt:
        sys.exit(130)


def _leave(*_: Any) -> None:
    os._exit(130)
