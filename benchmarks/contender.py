"""The process of one contender: `python -m benchmarks.contender MODULE FUNCTION FOLDER ARGUMENTS`.

Imports as little as it can, because the memory of this process is one of the things measured.
"""

import json
import sys
from importlib import import_module
from pathlib import Path


def peak_mb() -> float:
    """Return the peak resident memory of this process in MB.

    Not `ru_maxrss`: that one survives an exec, and so begins at the parent's peak.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1000
    raise RuntimeError("no VmHWM in /proc/self/status")


def main() -> None:
    """Call the function and print its figures as the last line of stdout."""
    module, function, folder, arguments = sys.argv[1:]
    figures = getattr(import_module(module), function)(Path(folder), **json.loads(arguments))
    print(json.dumps({**figures, "peak_mb": peak_mb()}))


if __name__ == "__main__":
    main()
