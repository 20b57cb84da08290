"""Which package of `asr_doge` imports which (downwards only, as in CONTRIBUTING.md), and how long modules are.

Imports within functions and under `TYPE_CHECKING` count too: they tie packages together just the same.
"""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "asr_doge"

GROUND_FLOOR = {"audio", "text"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "choices": set(),
    "defaults": set(),
    "progress": set(),
    "read_ahead": set(),
    "audio": set(),
    "text": set(),
    "data": GROUND_FLOOR,
    "models": GROUND_FLOOR,
    "decoding": {"models", "text"},
    "inference": {"decoding", "models", "data"} | GROUND_FLOOR,
    "training": {"models", "data", "decoding"} | GROUND_FLOOR,
    "benchmark": {"inference", "decoding", "models", "data"} | GROUND_FLOOR,
    "scaling": {"inference", "data", "audio"},
    "serving": {"inference", "decoding", "audio"},
}
"""`choices`, `defaults`, `errors`, `progress` and `read_ahead` may be imported by all.

`cli` may import every package and the package itself; no package may import `cli`."""
EVERY_PACKAGE = {*MAY_IMPORT, "cli"}

LONGEST_MODULE, LONGEST_FUNCTION = 400, 60
"""In lines, docstrings included."""

modules = sorted(PACKAGE.rglob("*.py"))


def imported_packages(source: str) -> set[str]:
    """Packages that a module's source imports; `asr_doge` for the package itself."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append("asr_doge")  # a relative import hides where it leads
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func) and node.args:
            argument = node.args[0]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                names.append(argument.value)
    packages = set()
    for name in names:
        root, _, rest = name.partition(".")
        package = rest.partition(".")[0]
        if root == "asr_doge":
            packages.add(package if package in EVERY_PACKAGE else "asr_doge")
    return packages


def functions_over(source: str, limit: int) -> list[str]:
    """Functions of more than `limit` lines, decorators not counted."""
    return [
        f"{node.name} ({node.end_lineno - node.lineno + 1} lines)"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= limit
    ]


def package_of(module: Path) -> str:
    """The package of a file, by its folder or its own name."""
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_there_are_modules_to_check() -> None:
    assert len(modules) > 20


@pytest.mark.parametrize("module", modules, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_lead_downwards(module: Path) -> None:
    package = package_of(module)
    if package in ("__init__", "__main__"):
        return  # the package's front door
    assert package in EVERY_PACKAGE, f"{package} is in no table"
    by_all = {"choices", "defaults", "errors", "progress", "read_ahead"}
    imported = imported_packages(module.read_text(encoding="utf-8")) - {package} - by_all
    allowed = {*EVERY_PACKAGE, "asr_doge"} if package == "cli" else MAY_IMPORT[package]
    assert imported <= allowed, f"{package} may not import {', '.join(sorted(imported - allowed))}"


@pytest.mark.parametrize("module", modules, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_can_be_read_at_a_sitting_and_a_function_on_a_screen(module: Path) -> None:
    source = module.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= LONGEST_MODULE
    assert not functions_over(source, LONGEST_FUNCTION)


def test_a_function_of_one_line_too_many_is_found() -> None:
    body = "\n".join("    pass" for _ in range(59))
    assert not functions_over(f"def f():\n{body}", 60)
    assert functions_over(f"async def f():\n{body}\n    pass", 60) == ["f (61 lines)"]


def test_models_and_data_do_not_know_each_other() -> None:
    assert "data" not in MAY_IMPORT["models"]
    assert "models" not in MAY_IMPORT["data"]


@pytest.mark.parametrize(
    "source",
    [
        "import asr_doge.models.loading",
        "from asr_doge.models import load_model",
        "from asr_doge import models",
        "def f():\n    from asr_doge.models import load_model",
        "if TYPE_CHECKING:\n    import asr_doge.models as m",
        "import_module('asr_doge.models.loading')",
        "__import__('asr_doge.models')",
        "try:\n    import json, asr_doge.models\nexcept ImportError: pass",
    ],
)
def test_every_kind_of_import_is_seen(source: str) -> None:
    assert imported_packages(source) == {"models"}


def test_what_is_in_no_table_is_asr_doge_itself() -> None:
    assert imported_packages("import asr_doge\nfrom . import x\nimport os, torch\nfrom asr_dogex import y") == {
        "asr_doge"
    }
