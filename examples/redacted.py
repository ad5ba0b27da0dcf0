"""Secrets are hidden before anything is queued, and payloads are held against a schema.

Run it: python examples/redacted.py [FOLDER]
"""

import asyncio
import sys

import otledger

ORDER = {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]}


async def main(root: str) -> None:
    async with otledger.open(
        root,
        service="shop",
        processors=[otledger.redact(keys=["password"], patterns=[r"\b\d{16}\b"])],
        schemas={"order.placed": ORDER},
    ) as ledger:
        await ledger.emit("user.login", {"name": "mira", "password": "hunter2"})
        await ledger.emit("order.placed", {"id": "seven", "note": "card 4111111111111111"})
        print("does not fit its schema:", ledger.health().invalid)

    for record in otledger.Reader(root).records(otledger.Filter(control=False)):
        print(record.type, record.data, record.extensions)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "ledger"))
