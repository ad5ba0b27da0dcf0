"""Imports go one way, down the layers of the architecture (docs/architecture or the design's page of that name)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import otledger

PACKAGE = Path(otledger.__file__).parent
EXPORTERS = Path(__file__).parent.parent / "exporters"

# From the top down. A module imports only modules of its own layer and of lower ones.
LAYERS = (
    ("__main__",),
    ("cli", "web", "mcp", "demo"),
    ("query", "predecessors"),
    ("integrations", "logging_handler"),
    ("ledger",),
    ("view",),
    ("core",),
    ("projection",),
    ("repair", "selftest", "archive", "places"),
    (
        *("span", "provider", "reader", "lookups", "follow", "verify", "verifier", "verifying", "chunks", "workers"),
        *("proofs", "provable", "witness", "witnesses", "witnessing", "archived", "shredding", "encryption"),
    ),
    ("index", "run_files"),
    ("writers", "writer", "delivery"),
    ("notary", "keymaking"),
    ("journal", "recovering", "partition", "handover"),
    ("sealing",),
    ("keys",),
    ("checkpoint", "recovery", "quarantine", "lock", "clock", "folder", "gitrepo", "subjectkeys"),
    ("segment",),
    (
        *("record", "batch", "merkle", "runs", "replayed", "trace", "replay", "turns", "pairs", "proof_file"),
        *("spandata", "strict", "filter", "processors", "schemas", "context"),
    ),
    ("decoding", "notes", "ciphertext", "keyring"),
    ("errors", "hooks", "hashes", "config", "identity", "ids", "speed", "values", "version"),
)
PLACES = {name: place for place, names in enumerate(reversed(LAYERS)) for name in names}

# What a method may import when it is called, so that a user finds it on the object that they hold.
DOORS = {("reader", "query.sql")}

# `otledger/__init__.py` names what is public, and so may name everything below the command line.
PUBLIC = "__init__"


def modules() -> dict[str, Path]:
    """All modules of the package by their dotted names."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts)] = path
    return found


def imported(path: Path, top: str = "otledger", *, at_import: bool = False) -> Iterator[str]:
    """The dotted names below a package that a file imports; only those at import time if `at_import`."""
    tree = ast.parse(path.read_text())
    skipped: set[ast.AST] = set()
    if at_import:
        for node in ast.walk(tree):
            guard = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            if guard or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                skipped.update(ast.walk(node))
    package = list(path.relative_to(PACKAGE.parent).parts[:-1]) if path.is_relative_to(PACKAGE) else []
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            known = [f"{module}.{alias.name}" for alias in node.names]
            names = [name if exists(name) else module for name in known]
        else:
            continue
        for name in names:
            if name == top or name.startswith(f"{top}."):
                yield name.removeprefix(top).removeprefix(".") or PUBLIC


def exists(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


def test_every_module_has_its_place() -> None:
    assert len(modules()) > 25
    unknown = {name.split(".")[0] for name in modules()} - PLACES.keys() - {PUBLIC}
    assert not unknown, f"say in LAYERS where {', '.join(sorted(unknown))} belong"


def test_no_name_stands_in_two_layers() -> None:
    assert sum(map(len, LAYERS)) == len(PLACES)


@pytest.mark.parametrize("name", modules())
def test_imports_go_down_the_layers(name: str) -> None:
    own = name.split(".")[0]
    found = list(imported(modules()[name]))
    if own == PUBLIC:
        assert found
        assert not {target.split(".")[0] for target in found} & {"cli", "web", "mcp", "demo"}
        return
    at_import = set(imported(modules()[name], at_import=True))
    for target in found:
        if (name, target) in DOORS and target not in at_import:
            continue
        there = target.split(".")[0]
        # The package itself is for those on top; the version stands in a module of its own.
        place = PLACES["query"] if there == PUBLIC else PLACES[there]
        assert place <= PLACES[own], f"otledger/{name} must not import otledger.{target}, which is above it"


def test_the_pure_modules_do_no_io() -> None:
    for name in ("record", "batch", "replayed", "trace", "replay", "turns", "pairs", "strict", "values", "filter"):
        tree = ast.parse((PACKAGE / f"{name}.py").read_text())
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert names
        assert not names & {"os", "socket", "asyncio", "threading", "subprocess", "io"}, name
        assert not any(isinstance(node, ast.AsyncFunctionDef) for node in ast.walk(tree)), name


def test_modules_do_not_import_each_other_in_circles() -> None:
    graph = {name: set(imported(path, at_import=True)) for name, path in modules().items()}
    graph = {name: {target for target in targets if target in graph} for name, targets in graph.items()}
    assert sum(map(len, graph.values())) > 50
    while free := [name for name, targets in graph.items() if not targets]:
        for name in free:
            del graph[name]
        for targets in graph.values():
            targets.difference_update(free)
    assert not graph, f"a circle among {', '.join(sorted(graph))}"


def test_the_library_never_imports_exporters() -> None:
    packages = [path.name for path in EXPORTERS.glob("*/") if (path / "__init__.py").exists()]
    for name, path in modules().items():
        for package in [*packages, "exporters"]:
            assert not list(imported(path, package)), f"otledger/{name} imports {package}"


def test_this_test_sees_imports(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(
        "import otledger.cli\nfrom otledger import ledger, open\nfrom otledger.record import Draft\n"
        "def f():\n    from otledger import values\nimport os, exporters.a\n"
    )
    assert sorted(imported(path)) == [PUBLIC, "cli", "ledger", "record", "values"]
    assert sorted(imported(path, at_import=True)) == [PUBLIC, "cli", "ledger", "record"]
    assert list(imported(path, "exporters")) == ["a"]
