"""A ledger that an auditor can check, and from which a person can be erased: signed checkpoints, a proof, a shredding.

Run it: python examples/signed.py [FOLDER]
"""

import asyncio
import sys
from pathlib import Path

import otledger
from otledger import keymaking, proof_file, proofs, shredding
from otledger.notes import VerifierKey


async def write(root: str, keys: Path) -> int:
    async with otledger.open(root, machine="clinic-1", keys=keys, encrypt=otledger.by_subject) as ledger:
        await ledger.emit("patient.admitted", {"name": "Ada"}, subject="patient-17")
        receipt = await ledger.append("bed.cleaned", {"ward": 3})
    return receipt.seq


def main(root: str) -> None:
    keys = Path(root).with_name("keys")
    settings = otledger.Config.resolve(root=root, machine="clinic-1", keys=keys)

    # Once, by whoever runs the service. The auditor writes the public key down.
    public = str(keymaking.init(settings).verifiers[-1])
    seq = asyncio.run(write(root, keys))

    report = otledger.verify(root, keys=[public])
    print(report.status, "sealed through", report.machines[0].sealed_through)

    # A file for somebody who has neither the ledger nor access to it, only the public key.
    proof = proof_file.write_proof(proofs.prove_record(root, "clinic-1", seq))
    proved = proof_file.check_proof(proof_file.read_proof(proof), [VerifierKey.parse(public)])
    print("proved: record", seq, "by key", proved.key.id.hex())

    name = next(record.data for record in otledger.Reader(root, keys=keys).records() if record.subject)
    shredding.shred(settings, "patient-17", "request 4711")
    erased = next(record.data for record in otledger.Reader(root, keys=keys).records() if record.subject)
    print(name, "is now", list(erased))
    print(otledger.verify(root, keys=[public]).status, "after the shredding")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "ledger")
