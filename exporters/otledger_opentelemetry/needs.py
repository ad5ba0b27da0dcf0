"""Packages that a command needs and the core does not bring."""

import importlib
from typing import Any

from otledger.cli.app import Failed


def needed(module: str, package: str = "otledger[otlp]") -> Any:
    """Give a module. Raises `Failed`, which says what to install, where it or what it needs is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Failed(f"this needs more packages ({error}); install them: pip install '{package}'") from None
