"""Counts what endpoints refuse of requests that they take otherwise: the SDK's OTLP exporters do not look."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from otledger.cli.output import counted

from .needs import needed

_CREDENTIALS = "OTEL_PYTHON_EXPORTER_OTLP_HTTP_"


class Refusals:
    """What was refused so far. `tell` is called with a line for each answer that says so."""

    def __init__(self, tell: Callable[[str], object]) -> None:
        self.spans = 0
        self.logs = 0
        self._tell = tell

    def session(self, *, logs: bool) -> Any:
        """Give a session for an exporter over HTTP whose answers are looked at; None: it has one of its own."""
        if any(name.startswith(_CREDENTIALS) and name.endswith("CREDENTIAL_PROVIDER") for name in os.environ):
            return None
        session = needed("requests").Session()
        session.hooks["response"].append(lambda response, *_, **__: self._look(response, logs=logs))
        return session

    def listen_to(self, exporter: Any, *, logs: bool) -> None:
        """Have the answers to an exporter over gRPC looked at, if it is built as those of today are."""
        make_stub = getattr(exporter, "_stub", None)
        if make_stub is None or getattr(exporter, "_channel", None) is None:
            return

        def make_listening(channel: Any) -> Any:
            stub = make_stub(channel)
            export = stub.Export

            def export_and_look(*arguments: Any, **named: Any) -> Any:
                answer = export(*arguments, **named)
                self._count(answer, logs=logs)
                return answer

            stub.Export = export_and_look
            return stub

        # It makes another one when the endpoint was not there.
        exporter._stub = make_listening
        exporter._client = make_listening(exporter._channel)

    def _look(self, response: Any, *, logs: bool) -> None:
        if response.status_code != 200 or not response.content:
            return
        try:
            answer = _parsed(response, logs=logs)
        except Exception:
            # Nonsense from a backend that says that it took everything.
            return
        self._count(answer, logs=logs)

    def _count(self, answer: Any, *, logs: bool) -> None:
        said = answer.partial_success
        refused = said.rejected_log_records if logs else said.rejected_spans
        if logs:
            self.logs += refused
        else:
            self.spans += refused
        if refused:
            what = counted(refused, "log record" if logs else "span")
            self._tell(f"the endpoint refused {what}: {said.error_message or 'it does not say why'}")


def _parsed(response: Any, *, logs: bool) -> Any:
    if logs:
        from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse as Answer
    else:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (  # type: ignore[assignment]
            ExportTraceServiceResponse as Answer,
        )
    if "json" in response.headers.get("content-type", ""):
        from google.protobuf.json_format import Parse

        return Parse(response.content, Answer(), ignore_unknown_fields=True)
    return Answer.FromString(response.content)
