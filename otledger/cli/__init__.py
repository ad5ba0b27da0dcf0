"""The command line. Entry and help cost what typer costs: everything else is imported inside the commands."""

from otledger.cli import (
    archiving,
    checking,
    demo,
    indexing,
    mending,
    numbers,
    proving,
    querying,
    reading,
    replaying,
    repository,
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
    "main",
    "mending",
    "numbers",
    "proving",
    "querying",
    "reading",
    "replaying",
    "repository",
    "transfer",
    "witnessing",
    "writing",
]
