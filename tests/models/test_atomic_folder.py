"""Under a folder's name lies the old or the new, whatever happens on the way."""

import os
from pathlib import Path

import pytest

from asr_doge.models.atomic_folder import atomic_folder


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def fail(folder: Path, error: BaseException) -> None:
    with atomic_folder(folder) as partial:
        assert contents(partial) == {}
        (partial / "new.txt").write_text("new")
        raise error


@pytest.mark.parametrize("before", [{}, {"old.txt": "old"}])
def test_the_new_takes_the_place_of_the_old(tmp_path: Path, before: dict[str, str]) -> None:
    target = tmp_path / "deep" / "folder"
    for name, text in before.items():
        target.mkdir(parents=True)
        (target / name).write_text(text)
    with atomic_folder(target) as partial:
        (partial / "new.txt").write_text("new")
        assert target.exists() == bool(before)
    assert contents(tmp_path) == {"deep/folder/new.txt": "new"}


@pytest.mark.parametrize("error", [OSError("no space"), KeyboardInterrupt()])
def test_what_fails_leaves_the_old_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    with atomic_folder(tmp_path / "folder") as partial:
        (partial / "old.txt").write_text("old")
    with pytest.raises(type(error)):
        fail(tmp_path / "folder", error)
    assert contents(tmp_path) == {"folder/old.txt": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("renames", [0, 1])
def test_a_process_that_is_killed_leaves_what_the_next_one_mends(tmp_path: Path, renames: int) -> None:
    """It dies while it writes, or between the two renames at the end."""
    target = tmp_path / "folder"
    with atomic_folder(target) as partial:
        (partial / "old.txt").write_text("old")
    child = os.fork()
    if child == 0:
        with atomic_folder(target) as partial:
            (partial / "half.txt").write_text("half")
            if renames:
                target.rename(target.with_name(".folder.old"))
            os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(OSError, match="no space"):
        fail(target, OSError("no space"))
    assert contents(tmp_path) == {"folder/old.txt": "old"}
