"""What a caller hands in to be told of on the way: how far the work has come, and which lines are no records."""

from collections.abc import Callable

from otledger.errors import FormatError

Progress = Callable[[int, int], object]
"""Called with the bytes that are done, and with all bytes."""
OnFault = Callable[[FormatError], object]
"""Called with each line that is no record, which is then passed over."""
