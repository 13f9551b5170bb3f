"""The entry point of `python -m whence`."""

from whence.frontends.cli import main

main()
