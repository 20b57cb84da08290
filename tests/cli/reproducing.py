"""A program for `test_scripts.py`: run `reproduce.sh` again and again, each stage killed once; prints the runs as JSON.

python -m tests.cli.reproducing CONFIG FOLDER
"""

import importlib
import itertools
import json
import sys
from pathlib import Path

from tests import interpreter
from tests.killing import kill_at_change

KILLED_AT_WRITE = {"make_digit_strings": 2, "process": 3, "features": 3, "train": 40, "benchmark": 1}
"""By stage, the write to its folder at which it is killed the first time."""


def main(config: str, folder: Path) -> list[tuple[int, str]]:
    """Exit code and output of each run: those that are killed, the one that ends, and one more."""
    out = folder / "out"

    def kill_once(arguments: list[str]) -> None:
        stage = next((stage for stage in KILLED_AT_WRITE if stage in " ".join(arguments[:3])), None)
        if stage is not None and not (folder / stage).exists():
            left = itertools.count(KILLED_AT_WRITE[stage], -1)
            (folder / stage).touch()
            kill_at_change(out, lambda: next(left) <= 1)

    for subcommand in ("process", "features", "train", "benchmark"):
        importlib.import_module(f"asr_doge.cli.{subcommand}")  # once, for all processes
    command = ["sh", "scripts/reproduce.sh", "--config", config, str(folder / "fsdd"), str(out)]
    runs = [interpreter.run_script(command, folder, kill_once, {"COUNT": "4"}) for _ in range(len(KILLED_AT_WRITE) + 2)]
    return [(run.returncode, run.stdout) for run in runs]


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]))))
