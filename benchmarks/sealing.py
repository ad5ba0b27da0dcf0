"""The rows about trees, notes and proofs."""

import asyncio
import statistics
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

from .bench import Bench
from .measure import Figures, Measurement, at_most, judged, run
from .payload import MACHINE, TYPE, payloads
from .writing import GIGABYTE_RECORDS

RATE = 50_000
"""Events a second."""


def make_key(root: Path) -> str:
    """Give a ledger's chain a key; return the public one."""
    import otledger
    from otledger.keymaking import init

    keys = init(otledger.Config.resolve(root=root, machine=MACHINE, service="bench", keys=root.parent / "keys"))
    return str(keys.verifiers[-1])


def _open(root: Path, **settings: Any) -> Any:
    import otledger

    return otledger.open(root, service="bench", machine=MACHINE, keys=root.parent / "keys", min_free=0, **settings)


def share(folder: Path, rate: int, seconds: float, keyed: bool) -> Figures:
    """Return which share of a core the thread takes that keeps the tree, signs and beats, at a steady rate."""
    root = folder / "ledger"
    if keyed:
        make_key(root)

    async def work() -> Figures:
        async with _open(root, durability="disk") as led:
            await led.append(TYPE, {})
            (notary,) = [one for one in threading.enumerate() if one.name.startswith("otledger-seal-")]
            assert notary.ident is not None
            clock = time.pthread_getcpuclockid(notary.ident)
            events, began, spent = payloads(int(rate * seconds) + rate), time.perf_counter(), time.clock_gettime(clock)
            sent = 0
            while (passed := time.perf_counter() - began) < seconds:
                for _ in range(int(passed * rate) - sent):
                    await led.emit(TYPE, next(events))
                    sent += 1
                await asyncio.sleep(0.001)
            # What was emitted last is sealed in the interval that follows.
            await asyncio.sleep(1.5)
            return {"share": (time.clock_gettime(clock) - spent) / passed, "rate": sent / passed}

    return asyncio.run(work())


def waits(folder: Path, n: int, keyed: bool) -> Figures:
    """Return the median and the 99th percentile of how long an append takes, in ms: one task, and no pauses."""
    root = folder / "ledger"
    if keyed:
        make_key(root)
    # Without: no checkpoint is made while this runs.
    interval = {} if keyed else {"checkpoint_interval": 1_000_000.0}

    async def work() -> list[float]:
        async with _open(root, durability="disk", **interval) as led:
            times = []
            for data in payloads(n):
                began = time.perf_counter()
                await led.append(TYPE, data)
                times.append(time.perf_counter() - began)
            return times

    times = sorted(asyncio.run(work()))
    return {"p50": statistics.median(times) * 1e3, "p99": times[int(len(times) * 0.99)] * 1e3}


def write_signed(folder: Path, n: int) -> Figures:
    """Write a ledger of so many records under signed checkpoints, with its public key beside it."""
    root = folder / "ledger"
    (folder / "public").write_text(make_key(root))

    async def work() -> None:
        async with _open(root, durability="os") as led:
            for data in payloads(n):
                await led.emit(TYPE, data)

    asyncio.run(work())
    return {}


def verify_signed(folder: Path, root: str, mode: str) -> Figures:
    """Return the seconds that a mode of `verify` takes over a signed ledger."""
    import otledger

    keys = [(Path(root) / "public").read_text()]
    modes: dict[str, dict[str, Any]] = {
        "chain": {},
        "notes": {"keys": keys},
        "tree": {"keys": keys, "tree": True},
        "since": {"keys": keys, "since_checkpoint": True},
    }
    began = time.perf_counter()
    report = otledger.verify(Path(root) / "ledger", **modes[mode])
    elapsed = time.perf_counter() - began
    if str(report.status) != "OK" or (mode != "chain" and report.machines[0].sealed_through is None):
        raise RuntimeError(f"{report.status}: {report.faults[:1]}")
    return {"seconds": elapsed, "ms": elapsed * 1e3}


def sealing(bench: Bench) -> list[Measurement]:
    """Measure what checkpoints cost beside the writer, and what it costs to check them."""
    rounds = bench.interleave(
        {
            "signed": bench.fresh(share, rate=RATE, seconds=5, keyed=True),
            "tree": bench.fresh(share, rate=RATE, seconds=5, keyed=False),
            "with": bench.fresh(waits, n=2000, keyed=True),
            "without": bench.fresh(waits, n=2000, keyed=False),
        }
    )
    signed = bench.folder()
    run(write_signed, signed, n=GIGABYTE_RECORDS)
    checks = bench.interleave(
        {mode: bench.fresh(verify_signed, root=str(signed), mode=mode) for mode in ("chain", "notes", "tree", "since")}
    )

    def rates() -> str:
        return f"tree alone {rounds.median('tree', 'share'):.3f}; {rounds.median('signed', 'rate'):,.0f}/s"

    def times(key: str) -> str:
        return f"{rounds.median('with', key):.2f} ms against {rounds.median('without', key):.2f} ms"

    def seconds(mode: str) -> str:
        return f"{checks.median(mode, 'seconds'):.2f} s against {checks.median('chain', 'seconds'):.2f} s"

    return [
        judged(
            "tree, notes and their syncs at 50,000 events/s, share of a core",
            "",
            partial(rounds.spread, "signed", "share"),
            at_most(0.1),
            rates,
        ),
        *[
            judged(
                f"append at disk with signed checkpoints against without, {name}",
                "x",
                partial(rounds.ratio, ("with", key), ("without", key)),
                bound,
                partial(times, key),
            )
            for name, key, bound in (("median", "p50", at_most(1.1)), ("99th percentile", "p99", None))
        ],
        judged(
            "verify with signed notes against chain alone, time",
            "x",
            partial(checks.ratio, ("notes", "seconds"), ("chain", "seconds")),
            at_most(1.1),
            partial(seconds, "notes"),
        ),
        judged(
            "verify --tree against chain alone, time",
            "x",
            partial(checks.ratio, ("tree", "seconds"), ("chain", "seconds")),
            at_most(2),
            partial(seconds, "tree"),
        ),
        judged("verify --since-checkpoint of 1 GB", "ms", partial(checks.spread, "since", "ms"), at_most(100)),
    ]
