"""What a job reads: every kind of source gives its recordings, with the right bytes and parts."""

import io
import json
import os
import tarfile
import threading
from collections.abc import Sequence
from pathlib import Path

import fsspec
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from asr_doge.errors import AudioError, DataError
from asr_doge.scaling import opening
from asr_doge.scaling.items import Item, list_items
from asr_doge.scaling.opening import ItemReader, cut, open_item

RATE = 16_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three recordings, b below, and a text."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("a.wav", "c.flac", "deep/b.wav"):
        soundfile.write(tmp_path / "in" / name, np.full(4000, 0.1, dtype=np.float32), RATE)
    (tmp_path / "in" / "notes.txt").write_text("no recording")
    return tmp_path / "in"


def names(sources: Sequence[str | Path]) -> list[str]:
    return [item.name for item in list_items([str(source) for source in sources])]


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def content(item: Item) -> bytes:
    with open_item(item) as file:
        assert file.fileno() >= 0  # a decoder is handed its descriptor
        return file.read()


def test_folders_files_and_globs(folder: Path) -> None:
    assert names([folder]) == [str(folder / name) for name in ("a.wav", "c.flac", "deep/b.wav")]
    assert names([folder / "c.flac", folder]) == [str(folder / name) for name in ("c.flac", "a.wav", "deep/b.wav")]
    assert names([folder / "**/*.wav"]) == [str(folder / name) for name in ("a.wav", "deep/b.wav")]
    assert names([folder / "missing.wav"]) == [str(folder / "missing.wav")]  # fails in its place


def test_a_pattern_lists_recordings_alone_and_once(folder: Path) -> None:
    found = names([f"{folder}/**"])  # the folder itself, and what is in it
    assert sorted(found) == [str(folder / name) for name in ("a.wav", "c.flac", "deep/b.wav")]
    assert names([f"{folder}/*.txt"]) == [str(folder / "notes.txt")]  # which was meant, then


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.wav")
    with pytest.raises(AudioError, match=r"a\.wav is a pipe: give a file"):
        open_item(Item(str(tmp_path / "a.wav"), ""))


def test_a_store_that_fails_once_is_asked_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that cannot be opened for lack of handles is there a moment later."""
    failures = [OSError(24, "Too many open files")]

    def unsure(path: Path, mode: str) -> io.BufferedReader:
        if failures:
            raise failures.pop()
        return io.open(path, "rb")  # noqa: UP020 - Path.open is the one replaced

    monkeypatch.setattr(opening, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(Path, "open", unsure)
    (item,) = list_items([str(folder / "a.wav")])
    for attempts, fails in ((1, True), (2, False)):
        failures[:] = [OSError(24, "Too many open files")]
        reader = ItemReader(1, attempts, 500_000_000, None)
        try:
            if fails:
                with pytest.raises(AudioError, match="Too many open files"):
                    list(reader.blocks(item, print, threading.Event()))
            else:
                assert sum(map(len, reader.blocks(item, print, threading.Event()))) == 4000
        finally:
            reader.close()


def test_a_change_of_a_file_shows(folder: Path) -> None:
    before = list_items([str(folder)])
    (folder / "a.wav").write_bytes(b"another")
    after = list_items([str(folder)])
    assert [item.stamp == other.stamp for item, other in zip(before, after, strict=True)] == [False, True, True]


@pytest.mark.parametrize("path_field", ["audio_path", "audio_filepath"])
def test_manifests_with_and_without_parts(folder: Path, path_field: str) -> None:
    manifest = folder / "m.json"
    rows: list[dict[str, object]] = [
        {path_field: "a.wav", "text": "x", "duration": 0.25},
        {path_field: str(folder / "c.flac"), "text": "y", "offset": 0.05, "duration": 0.1},
        {path_field: "s3://bucket/d.wav", "text": "z", "offset": 0, "duration": 2},
    ]
    manifest.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    whole, part, remote = list_items([str(manifest)])
    assert (whole.url, whole.is_part) == (str(folder / "a.wav"), False)
    assert (part.url, part.offset, part.duration) == (str(folder / "c.flac"), 0.05, 0.1)
    assert remote.url == "s3://bucket/d.wav"


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "not JSON in UTF-8"),
        ("[]", 'no "audio_path"'),
        ('{"audio_path": "a.wav", "offset": -1}', '"offset" is not'),
        ('{"audio_path": "a.wav", "offset": 1, "duration": 0}', '"duration" is not'),
    ],
)
def test_a_bad_line_of_a_manifest_is_named(tmp_path: Path, line: str, fault: str) -> None:
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(f'{{"audio_path": "a.wav"}}\n{line}\n')
    with pytest.raises(DataError, match=f"m.jsonl line 2: {fault}"):
        list_items([str(manifest)])


def test_members_of_a_tar_file(folder: Path, tmp_path: Path) -> None:
    members = {name: (folder / name).read_bytes() for name in ("a.wav", "c.flac")}
    archive = write_tar(tmp_path / "shard-000.tar", {"a.json": b"{}", **members, "c.txt": b"text"})
    items = list_items([str(archive)])
    assert [item.name for item in items] == [f"{archive}#a.wav", f"{archive}#c.flac"]
    assert [content(item) for item in items] == list(members.values())


def test_rows_of_parquet(folder: Path, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    sound = (folder / "a.wav").read_bytes()
    rows = [{"bytes": sound, "path": "a.wav"}, {"bytes": None, "path": "in/c.flac"}, {"bytes": None, "path": None}]
    table = arrow.table({"audio": rows, "text": ["x", "y", "z"]})
    parquet.write_table(table, tmp_path / "data.parquet", row_group_size=2)
    items = list_items([str(tmp_path / "data.parquet")])
    assert [item.name for item in items] == [f"{tmp_path / 'data.parquet'}#{row}" for row in range(3)]
    assert [content(item) for item in items[:2]] == [sound, (folder / "c.flac").read_bytes()]
    with pytest.raises(AudioError, match="#2 has neither bytes nor a path"):
        open_item(items[2])


def test_urls_are_listed_and_fetched(folder: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/x/b.wav", (folder / "a.wav").read_bytes())
    memory.pipe("/bucket/x/a.txt", b"no recording")
    memory.pipe("/bucket/a.flac", (folder / "c.flac").read_bytes())
    assert names(["memory://bucket"]) == ["memory://bucket/a.flac", "memory://bucket/x/b.wav"]
    assert names(["memory://bucket/*.flac"]) == ["memory://bucket/a.flac"]
    (item,) = list_items(["memory://bucket/x/b.wav"])
    assert content(item) == (folder / "a.wav").read_bytes()


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("", "an argument is empty"),
        ("*.nothing", r"\*.nothing matches nothing"),
        ("memory://nowhere/a.wav", "memory://nowhere/a.wav does not exist"),
        ("sthree://bucket/a.wav", r"sthree://bucket/a.wav cannot be opened .*give a folder"),
        ("missing.json", "missing.json cannot be read"),
    ],
)
def test_a_source_that_cannot_be_listed_is_one_line(
    source: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=fault):
        list_items([source])


def test_files_that_hold_recordings_and_are_damaged(tmp_path: Path) -> None:
    for name, fault in (("a.tar", "is not a complete tar file"), ("a.parquet", "is not a Parquet file")):
        (tmp_path / name).write_bytes(b"neither" * 300)
        with pytest.raises(DataError, match=f"{name} {fault}"):
            list_items([str(tmp_path / name)])


@given(
    lengths=st.lists(st.integers(1, 5000), min_size=1, max_size=8),
    offset=st.integers(0, 20_000),
    duration=st.none() | st.integers(1, 20_000),
)
def test_a_part_is_the_same_slice(lengths: list[int], offset: int, duration: int | None) -> None:
    whole: NDArray[np.float32] = np.arange(sum(lengths), dtype=np.float32)
    blocks = iter(np.split(whole, np.cumsum(lengths)[:-1]))
    item = Item("a.wav", offset=offset / RATE, duration=None if duration is None else duration / RATE)
    expected = whole[offset : None if duration is None else offset + duration]
    if offset >= len(whole) and item.is_part:
        with pytest.raises(AudioError, match=r"a\.wav is .* s long, and its part would begin at"):
            list(cut(blocks, item))
        return
    np.testing.assert_array_equal(np.concatenate(list(cut(blocks, item))), expected)


def test_recordings_are_read_ahead_in_order_and_can_be_left(folder: Path) -> None:
    reader = ItemReader(decoders=2, attempts=1, memory=500_000_000, channel=None)
    items = list_items([str(folder)]) * 3
    lengths = []
    for reading in reader.read_ahead(items):
        blocks = reading.blocks(lambda note: None)
        lengths.append(len(next(blocks)))  # and the rest is left
    assert lengths == [4000] * 9
    reader.close()
