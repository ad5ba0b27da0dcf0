"""The instrumentor entry point: installs the recording processor where otledger was asked for."""

from __future__ import annotations

import os
from typing import Any

from .exporting import asked_for


class OtledgerInstrumentor:
    """Adds a `LedgerSpanProcessor` to the global provider, in `instrument()`.

    `opentelemetry-instrument` calls that of every installed instrumentor, so it does nothing unless otledger is
    among the exporters, a root is set, or settings are given (`instrumentation/development: {python: {otledger:
    {root: …}}}` of a configuration file).
    """

    def instrument(self, **given: Any) -> None:
        """Install the processor. Keyword arguments of others are left alone."""
        from otledger.config import Config

        settings = {name: value for name, value in given.items() if name in Config.__dataclass_fields__}
        asked = settings or asked_for("OTEL_TRACES_EXPORTER") or os.environ.get("OTEL_OTLEDGER_ROOT")
        if not asked:
            return
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider

        from .processing import LedgerSpanProcessor

        provider = trace.get_tracer_provider()
        if isinstance(provider, TracerProvider):
            LedgerSpanProcessor.install(provider, **settings)

    def uninstrument(self, **given: Any) -> None:
        """Do nothing: what is recorded stays recorded until the provider is shut down."""
