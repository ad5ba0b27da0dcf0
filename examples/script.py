"""A program without asyncio: a plain `with`, plain calls, and the journal itself for batches.

Run it: python examples/script.py [FOLDER]
"""

import sys

import otledger


def main(root: str) -> None:
    with otledger.open_sync(root, service="nightly", machine="batch-1") as ledger, ledger.span("backup") as span:
        span.set_attribute("files", 3)
        ledger.emit("backup.begin", {"files": 3})
        receipt = ledger.append("backup.done", {"bytes": 4096})
        print("durable:", receipt.seq, receipt.checksum[:23])

    with otledger.Journal(root, machine="batch-2", service="loader") as journal:
        receipts = journal.append([otledger.Draft("row.loaded", {"row": row}) for row in range(100)])
        print("one batch:", receipts[0].seq, "to", receipts[-1].seq)

    print(otledger.verify(root).status)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "ledger")
