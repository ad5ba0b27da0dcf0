"""Compile the hot path (`otledger/_*.c`) where there is a C compiler; without one the package is pure Python."""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = ("_speed", "_decode")


class SpeedBuildHook(BuildHookInterface[Any]):
    """Builds `otledger._speed` and `otledger._decode`, unless `OTLEDGER_PURE` is set."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and have the wheel hold the result; in an editable installation it lies beside its source."""
        if self.target_name != "wheel" or os.environ.get("OTLEDGER_PURE"):
            return
        package = Path(self.root, "otledger")
        folder = package if version == "editable" else Path(tempfile.mkdtemp())
        for source in SOURCES:
            name = f"{source}{sysconfig.get_config_var('EXT_SUFFIX')}"
            problem = compile_module(package / f"{source}.c", folder / name)
            if problem:
                self.app.display_warning(f"otledger's hot path stays in Python, and is several times slower: {problem}")
                return
            if version != "editable":
                build_data["force_include"][str(folder / name)] = f"otledger/{name}"
            build_data["pure_python"] = False
            build_data["infer_tag"] = True


def compile_module(source: Path, target: Path) -> str:
    """Compile `source` into the extension module `target`. Gives what went wrong; empty: nothing."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    flags = ["-O3", "-fPIC", "-shared", f"-I{sysconfig.get_path('include')}"]
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    # Beside its place first: a program may be running the old one.
    fresh = target.with_name(f".{os.getpid()}-{target.name}")
    command = [*compiler, *flags, f'-DSOURCE="{digest}"', str(source), "-o", str(fresh)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return done.stderr.strip().partition("\n")[0] or f"{command[0]} exited with {done.returncode}"
        fresh.replace(target)
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    finally:
        fresh.unlink(missing_ok=True)
    return ""
