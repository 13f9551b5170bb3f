"""`python -m whence`."""

from whence.frontends.cli import main

main()
