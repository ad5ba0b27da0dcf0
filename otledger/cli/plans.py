"""What recovery or an archive would do or did, for people."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from otledger.archive import MachinePlan
from otledger.cli.output import Paint, counted, safe, size_text
from otledger.cli.report import coloured
from otledger.repair import Around, Left, Plan, Step


def plan_lines(plans: Sequence[Plan], *, done: bool) -> Iterator[str]:
    """Give the steps of each machine, what is left, and what to do next."""
    paint = Paint(sys.stdout)
    for plan in plans:
        for step in plan.steps:
            yield f"{safe(plan.machine)}  {paint.yellow('done' if done else 'would')}  {safe(_step(step))}"
        for name in plan.kept:
            yield f"{safe(plan.machine)}  kept as quarantine/{safe(name)}"
        for left in plan.left:
            yield from _left(left, paint)
        if plan.more_left:
            yield f"and {counted(plan.more_left, 'fault')} more in {safe(plan.machine)}"
    steps = sum(len(plan.steps) for plan in plans)
    left_over = sum(len(plan.left) for plan in plans)
    if left_over:
        yield f"{paint.red('left')}: {counted(left_over, 'place')} that no program can mend; compare with a copy"
    if steps and not done:
        yield f"{counted(steps, 'step')} to do, and nothing was written; do it by: otledger repair --yes"
    elif not steps and not left_over:
        yield paint.green("nothing to do")


def archive_lines(plans: Sequence[MachinePlan], destination: str, *, done: bool) -> Iterator[str]:
    """Give the segments of each machine, and what to do next."""
    paint = Paint(sys.stdout)
    for plan in plans:
        for move in plan.moves:
            what = f"{move.segment}, {size_text(move.size)}, records {move.first:,} to {move.last:,}"
            if move.copied and not done:
                what += ", of which an earlier run has made the copy"
            yield f"{safe(plan.machine)}  {paint.yellow('moved' if done else 'would move')}  {what}"
    moves = sum(len(plan.moves) for plan in plans)
    if not moves:
        yield paint.green("nothing to do")
    elif not done:
        yield f"{counted(moves, 'segment')} to move to {safe(destination)}, and nothing was written; do it by: --yes"


def _step(step: Step) -> str:
    where = f"{step.segment} from offset {step.offset}"
    if step.kind == "cut":
        return f"set aside the last {size_text(step.bytes)} of {where}, then cut them off: {step.reason}"
    if step.kind == "header":
        return f"set aside the {size_text(step.bytes)} of {step.segment}, and write its header again: {step.reason}"
    if step.kind == "segment":
        return f"begin the next segment after {where}: {step.reason}"
    return f"write down what was set aside from {where} ({size_text(step.bytes)}): {step.reason}"


def _left(left: Left, paint: Paint) -> Iterator[str]:
    yield f"{coloured(left.fault.status, paint)}  {safe(str(left.fault))}"
    if left.before is not None:
        yield f"    the record before  {_around(left.before)}"
    if left.bytes is not None:
        yield f"    {size_text(left.bytes)} up to the next good record"
    if left.after is not None:
        yield f"    the record after   {_around(left.after)}"


def _around(record: Around) -> str:
    return safe(f"offset {record.offset}, seq {record.seq}, {record.time}, {record.type}, id {record.id}")
