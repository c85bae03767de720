"""The folders are layers: a picture walks down through them, and none imports from a folder above it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from installed import REPOSITORY

ROOMS = [
    "gender_batch.cli",
    "gender_batch_export",
    "gender_batch.training",
    "gender_batch.evaluation",
    "gender_batch.outputs",
    "gender_batch.scoring",
    "gender_batch.faces",
    "gender_batch.model",
    "gender_batch.pictures",
    "gender_batch.prediction",
]
HEAVY = {"torch", "torchvision", "onnx", "onnxscript", "sklearn", "safetensors"}
MAY_BE_HEAVY = {"gender_batch.cli", "gender_batch_export", "gender_batch.training"}


def modules() -> Iterator[tuple[str, Path]]:
    for root in (REPOSITORY, REPOSITORY / "export"):
        for package in ("gender_batch", "gender_batch_export"):
            for path in sorted((root / package).rglob("*.py")):
                yield ".".join(path.relative_to(root).with_suffix("").parts), path


def room(name: str) -> int | None:
    return next((number for number, prefix in enumerate(ROOMS) if f"{name}.".startswith(f"{prefix}.")), None)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize(("name", "path"), [pytest.param(*module, id=module[0]) for module in modules()])
def test_a_module_imports_only_from_its_own_room_and_those_below(name: str, path: Path) -> None:
    own = room(name)
    if own is None:
        assert name in ("gender_batch.__init__", "gender_batch.__main__")
        return
    for imported in imports(path):
        other = room(imported)
        assert other is None or other >= own, f"{name} imports {imported}, which is above it"
        if ROOMS[own] not in MAY_BE_HEAVY:
            assert imported.split(".")[0] not in HEAVY, f"{name} imports {imported}: the runtime has no torch"


def test_every_folder_is_a_room() -> None:
    folders = {path.name for path in (REPOSITORY / "gender_batch").iterdir() if (path / "__init__.py").exists()}
    assert folders == {name.split(".")[1] for name in ROOMS if name.count(".") == 1} - {"prediction"}
