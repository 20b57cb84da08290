"""`docs/architecture.md` names functions that exist."""

import importlib
import re
from functools import reduce
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
PACKAGES = {path.parent.name for path in (PAGE.parents[1] / "src" / "asr_doge").glob("*/__init__.py")}
NAMES = sorted(
    name for name in set(re.findall(r"`([\w.]+)`", PAGE.read_text())) if name.split(".")[0] in PACKAGES and "." in name
)
"""Those that begin with a package of ours, such as `decoding.ctc.ctc_log_posteriors`."""


@pytest.mark.parametrize("name", NAMES)
def test_the_page_names_what_exists(name: str) -> None:
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(["asr_doge", *parts[:count]]))
        except ModuleNotFoundError:
            continue
        reduce(getattr, parts[count:], module)
        return
    raise AssertionError(f"{name} is no module of asr_doge")
