"""Projections: databases that are kept equal to what a ledger holds."""

from otledger.projection.projection import CaughtUp, Projection

__all__ = ["CaughtUp", "Projection"]
