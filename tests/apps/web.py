"""A FastAPI application that knows nothing of otledger."""

import asyncio

from fastapi import FastAPI
from opentelemetry import trace

app = FastAPI()
tracer = trace.get_tracer("shop", "1.0")


@app.get("/orders/{number}")
async def order(number: int, wait: float = 0.0) -> dict[str, object]:
    """Answer with the id of the span of the work that was done."""
    with tracer.start_as_current_span("charge", attributes={"order.number": number}) as span:
        await asyncio.sleep(wait)
        context = span.get_span_context()
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
