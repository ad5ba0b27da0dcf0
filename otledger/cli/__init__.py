"""The command line. Entry and help cost what typer costs: everything else is imported inside the commands."""

from otledger.cli import (
    archiving,
    checking,
    demo,
    indexing,
    keeping,
    mending,
    numbers,
    proving,
    querying,
    reading,
    replaying,
    repository,
    shredding,
    transfer,
    witnessing,
    writing,
)
from otledger.cli.app import app, main

__all__ = [
    "app",
    "archiving",
    "checking",
    "demo",
    "indexing",
    "keeping",
    "main",
    "mending",
    "numbers",
    "proving",
    "querying",
    "reading",
    "replaying",
    "repository",
    "shredding",
    "transfer",
    "witnessing",
    "writing",
]
