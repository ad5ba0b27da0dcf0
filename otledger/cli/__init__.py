"""The command line. Entry and help cost what typer costs: everything else is imported inside the commands."""

from otledger.cli import (
    checking,
    demo,
    indexing,
    mending,
    numbers,
    querying,
    reading,
    replaying,
    shredding,
    transfer,
    writing,
)
from otledger.cli.app import app, main

__all__ = [
    "app",
    "checking",
    "demo",
    "indexing",
    "main",
    "mending",
    "numbers",
    "querying",
    "reading",
    "replaying",
    "shredding",
    "transfer",
    "writing",
]
