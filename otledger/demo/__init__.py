"""The demo: a server with the ledger in it is killed in the middle of its work, and nothing it promised is lost."""

from otledger.demo.story import run

__all__ = ["run"]
