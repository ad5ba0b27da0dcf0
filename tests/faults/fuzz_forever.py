"""A target of the fuzzers under atheris, which looks for inputs that reach new code, or under a sanitizer.

    pip install atheris
    python -m tests.faults.fuzz_forever verifying -max_total_time=600
    python -m tests.faults.fuzz_forever --dice encoding 20000

With `--dice` the examples are those of the short campaign, without atheris. `OTLEDGER_SPEED` names a folder of builds
of the compiled parts that are used instead of the installed ones.
"""

import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from typing import Any


def use_builds(folder: str) -> None:
    """Have these builds of the compiled parts imported from now on."""
    for path in Path(folder).glob("_*.so"):
        name = f"otledger.{path.name.partition('.')[0]}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)


class Fed:
    """Chance from the bytes that atheris feeds."""

    def __init__(self, provider: Any) -> None:
        self._provider = provider

    def number(self, low: int, high: int) -> int:
        if high - low < 1 << 62 and low >= -(1 << 63) and high < 1 << 63:
            return int(self._provider.ConsumeIntInRange(low, high))
        return low + int.from_bytes(self.octets(16)) % (high - low + 1)

    def octets(self, count: int) -> bytes:
        return bytes(self._provider.ConsumeBytes(count))


def with_dice(names: list[str], count: int) -> None:
    from tests.faults.fuzz_targets import TARGETS, Bench
    from tests.faults.fuzzing import Dice

    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for name in names:
            for number in range(count):
                TARGETS[name][0](bench, Dice((name, "sanitized", number)))
            print(name, count, flush=True)


def with_atheris(name: str) -> None:
    import atheris

    with atheris.instrument_imports(include=["otledger", "otledger_opentelemetry"]):
        from tests.faults.fuzz_targets import TARGETS, Bench

        target = TARGETS[name][0]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        atheris.Setup(sys.argv, lambda data: target(bench, Fed(atheris.FuzzedDataProvider(data))))
        atheris.Fuzz()


if __name__ == "__main__":
    if builds := os.environ.get("OTLEDGER_SPEED"):
        use_builds(builds)
    if sys.argv[1] == "--dice":
        with_dice(sys.argv[2].split(","), int(sys.argv[3]))
    else:
        with_atheris(sys.argv.pop(1))
