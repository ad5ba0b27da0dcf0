"""Axis scores of a game, rebuilt from what the ledger holds of its decisions: a database that is never out of step.

Run it: python examples/axis_scores.py [FOLDER]

The game writes `chat.mechanical_resolution`: what two characters' axes were before, and what was added to each.
The ledger is what happened, and the database is a view of it. Where the two do not fit, because one of them came
from a backup or the rules below were changed, the view is made anew from the ledger.
"""

import logging
import sqlite3
import sys
from pathlib import Path

import otledger
from otledger.predecessors import import_pipeworks

PIPEWORKS = Path(__file__).parent.parent / "tests" / "data" / "pipeworks"

TABLES = """
CREATE TABLE score (
    world TEXT, character INTEGER, axis TEXT, value REAL, resolutions INTEGER,
    PRIMARY KEY (world, character, axis)
)
"""


def apply(connection: sqlite3.Connection, record: otledger.Record) -> None:
    """Take over one decision: each axis is what it was before, and what was added."""
    data = record.data
    for side in ("speaker", "listener"):
        character = data[side]["character_id"]
        before = data["axis_snapshot_before"][str(character)]
        for axis, delta in data[side]["axis_deltas"].items():
            connection.execute(
                "INSERT INTO score VALUES (?, ?, ?, ?, 1) ON CONFLICT DO UPDATE"
                " SET value = excluded.value, resolutions = resolutions + 1",
                (record.subject, character, axis, round(before[axis] + delta, 4)),
            )


def scores(root: str, database: Path) -> otledger.Projection:
    wanted = otledger.Filter(type="chat.mechanical_resolution")
    return otledger.Projection("axis-scores", apply, database, root=root, setup=TABLES, filter=wanted)


def show(database: Path) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(database)
    try:
        return connection.execute("SELECT * FROM score ORDER BY world, character, axis").fetchall()
    finally:
        connection.close()


def main(root: str) -> None:
    logging.basicConfig(format="%(message)s")
    import_pipeworks(root, PIPEWORKS)
    database = Path(root).with_suffix(".scores.db")
    for path in Path(root).parent.glob(f"{database.name}*"):
        path.unlink()

    with scores(root, database) as projection:
        done = projection.catch_up_sync()
        print(f"{done.applied} decisions applied of {done.read} records read")
        right = show(database)
        for row in right[:3]:
            print(*row)
        print("again:", projection.catch_up_sync().applied)

    # Somebody puts an old database back, or edits it: its position is not the ledger's.
    connection = sqlite3.connect(database)
    connection.execute("UPDATE otledger_position SET checksum = 'sha256:' || substr(checksum, 9) || '0'")
    connection.execute("UPDATE score SET value = 0")
    connection.commit()
    connection.close()

    with scores(root, database) as projection:
        done = projection.catch_up_sync()
        print("rebuilt:", done.applied, "because", done.rebuilt)
        print("as before:", show(database) == right)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "ledger")
