"""A selection of the fault tests on the user's own file system: `otledger doctor --self-test DIR`."""

from otledger.selftest.running import Outcome, self_test

__all__ = ["Outcome", "self_test"]
