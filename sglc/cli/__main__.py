"""`python -m sglc.cli`."""

from sglc.cli import main

main()
