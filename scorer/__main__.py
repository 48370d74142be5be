"""`python -m scorer` is `fraud-scorer`."""

from scorer.cli import main

main()
