"""A small asyncio program with a ledger: events, a span, a turn, and what they look like afterwards.

Run it: python examples/shop.py [FOLDER]
"""

import asyncio
import sys

import otledger


async def order(ledger: otledger.Ledger, number: int) -> None:
    async with ledger.span("order", attributes={"order.number": number}) as span:
        await ledger.emit("order.placed", {"number": number}, subject="tenant-1")
        span.add_event("stock checked")
        # On return the record is on the disk: now the customer may be told.
        receipt = await ledger.append("order.paid", {"number": number, "amount": 12.5}, subject="tenant-1")
        print(f"order {number} is record {receipt.seq} in {receipt.segment}")


async def main(root: str) -> None:
    async with otledger.open(root, service="shop") as ledger:
        await asyncio.gather(*(order(ledger, number) for number in range(3)))

        # A decision of the rules, and the text that a model made of it, are linked by one hash.
        decision = {"speaker": "Mira", "axis": "trust", "delta": 0.25}
        async with ledger.turn(otledger.ipc_hash(decision)):
            await ledger.emit("chat.mechanical_resolution", decision)
            await ledger.emit("chat.translation", {"text": "Well met."})

    for record in otledger.Reader(root).records(otledger.Filter(control=False)):
        print(record.seq, record.type, record.subject or "", record.data if record.type[:5] != "otel." else "")
    print(otledger.verify(root).status)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "ledger"))
