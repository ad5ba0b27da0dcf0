"""The instrumentor entry point: installs the recording processor where otledger was asked for."""

from __future__ import annotations

import logging
import os
from typing import Any

from .exporting import asked_for

log = logging.getLogger("otledger")

_OF_OTHERS = frozenset(
    {"skip_dep_check", "raise_exception_on_conflict", "tracer_provider", "meter_provider", "logger_provider"}
)
"""What instrumentors are given that is no setting of ours."""


class OtledgerInstrumentor:
    """Adds a `LedgerSpanProcessor` to the global provider, in `instrument()`.

    `opentelemetry-instrument` calls that of every installed instrumentor, so it does nothing unless otledger is
    among the exporters, a root is set while `OTEL_TRACES_EXPORTER` is not `none`, or settings are given
    (`instrumentation/development: {python: {otledger: {root: …}}}` of a configuration file).
    """

    def instrument(self, **given: Any) -> None:
        """Install the processor. Keyword arguments of others are left alone; unknown ones are warned of."""
        from otledger.config import Config

        settings = {name: value for name, value in given.items() if name in Config.__dataclass_fields__}
        if unknown := given.keys() - settings.keys() - _OF_OTHERS:
            names, known = ", ".join(sorted(unknown)), ", ".join(Config.__dataclass_fields__)
            log.warning("otledger has no setting %s, which is passed over; there are: %s", names, known)
        if not (settings or _asked_for()):
            return
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider

        from .processing import LedgerSpanProcessor

        provider = trace.get_tracer_provider()
        if isinstance(provider, TracerProvider):
            LedgerSpanProcessor.install(provider, **settings)

    def uninstrument(self, **given: Any) -> None:
        """Do nothing: what is recorded stays recorded until the provider is shut down."""


def _asked_for() -> bool:
    # A root that is there for logs or metrics alone asks for no spans.
    spans = os.environ.get("OTEL_TRACES_EXPORTER", "").strip() != "none"
    return asked_for("OTEL_TRACES_EXPORTER") or (spans and bool(os.environ.get("OTEL_OTLEDGER_ROOT")))
