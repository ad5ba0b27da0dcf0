"""Packages that a query needs and the core does not bring."""

from __future__ import annotations

import importlib
from typing import Any

from otledger.errors import ConfigurationError


def needed(module: str, extra: str = "sql") -> Any:
    """Give a module. Raises `ConfigurationError`, which names the extra to install, where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigurationError(
            f"this needs more packages ({error}); install them: pip install 'otledger[{extra}]'"
        ) from None
