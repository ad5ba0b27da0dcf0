"""The views that SQL sees, over the table of all records (scanning.py). Every column is declared."""

from __future__ import annotations

import re
from collections.abc import Sequence

from otledger.query.extents import Extent

TABLE = "otledger_lines"

EVENTS = f"""
create temp view events as select
    machine, seq, id, type, source, subject, time, time_ns, ipc_hash, trace_id, span_id, parent_span_id,
    name, kind, status, start_ns, end_ns, data, extensions, datacontenttype, dataschema, traceparent, tracestate,
    time_text, synced, prev, checksum, segment, "offset" as line_offset, size as line_size
from {TABLE}
"""

# Of several records of one span its first end counts, else its first start. What begins, ends and lasts how long is
# what `Reader.spans`, `traces` and `turns` say.
SPANS = """
create temp view spans as select
    trace_id, span_id, parent_span_id, name, kind, status,
    make_timestamp(start_ns // 1000) as start_time, make_timestamp(end_ns // 1000) as end_time,
    case when end_ns is not null then try(greatest(end_ns, start_ns) - start_ns) end as duration_ns,
    type = 'otel.span.end' as finished,
    machine, source, subject, ipc_hash, start_ns, end_ns, seq,
    data->'attributes' as attributes, data->'events' as events, data->'links' as links, data
from events
where type in ('otel.span.start', 'otel.span.end')
qualify row_number() over (
    partition by trace_id, span_id order by type = 'otel.span.end' desc, time_ns, machine, seq
) = 1
"""

TRACES = """
create temp view traces as select
    trace_id, name, make_timestamp(start_ns // 1000) as start_time, make_timestamp(end_ns // 1000) as end_time,
    try(end_ns - start_ns) as duration_ns, spans, errors, unfinished, machines, sources, start_ns, end_ns
from (
    select
        trace_id, arg_min(name, start_ns) filter (where parent_span_id is null) as name,
        count(*) as spans,
        count(*) filter (where status = 'ERROR') as errors,
        count(*) filter (where not finished) as unfinished,
        list(distinct machine order by machine) as machines, list(distinct source order by source) as sources,
        min(start_ns) as start_ns, max(greatest(start_ns, coalesce(end_ns, start_ns))) as end_ns
    from spans group by trace_id
)
"""

TURNS = """
create temp view turns as select
    ipc_hash, records, start_time, end_time, try(end_ns - start_ns) as duration_ns, types, traces, spans, machines,
    start_ns, end_ns
from (
    select
        ipc_hash, count(*) as records, max(time) as end_time,
        min(case when ends then make_timestamp(start_ns // 1000) else time end) as start_time,
        list(distinct type order by type) as types, list(distinct machine order by machine) as machines,
        count(distinct trace_id) as traces, count(distinct span_id) as spans,
        min(case when ends then start_ns else time_ns end) as start_ns, max(time_ns) as end_ns
    from (select *, type = 'otel.span.end' and start_ns is not null as ends from events where ipc_hash is not null)
    group by ipc_hash
)
"""

_MACHINES = """
create temp view machines as select
    m.machine, m.chained, coalesce(found.segments, 0) as segments, coalesce(found.records, 0) as records,
    coalesce(found.bytes, 0) as bytes, found.first_seq, found.last_seq, found.first_time, found.last_time
from (values {rows}) as m(machine, chained) left join (
    select
        machine, count(distinct segment) as segments, count(*) as records, sum(line_size)::bigint as bytes,
        min(seq) as first_seq, max(seq) as last_seq, min(time) as first_time, max(time) as last_time
    from events group by machine
) as found on m.machine = found.machine
"""


def statements(found: Sequence[Extent], query: str) -> list[str]:
    """Give the statements that make the views a query names, and those that these need; all where it names none.

    Each costs some milliseconds, which is much of what a query over a small ledger takes.
    """
    machines = {extent.machine: extent.chained for extent in found}
    rows = ", ".join(f"('{machine}', {chained})" for machine, chained in machines.items())
    views = {
        "events": EVENTS,
        "spans": SPANS,
        "traces": TRACES,
        "turns": TURNS,
        "machines": _MACHINES.format(rows=rows or "(null::varchar, null::boolean)"),
    }
    named = {name for name in views if re.search(rf"\b{name}\b", query, re.IGNORECASE)} or set(views)
    needed = named | {"events"} | ({"spans"} if "traces" in named else set())
    return [statement for name, statement in views.items() if name in needed]
