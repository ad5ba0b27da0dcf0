"""`python -m otledger`."""

from otledger.cli import main

main()
