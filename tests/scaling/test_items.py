"""What a job reads: every kind of source gives its recordings, with the right bytes and parts."""

import gzip
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
from asr_doge.scaling import item_reading
from asr_doge.scaling.item_reading import ItemReader, open_item, samples_of_item
from asr_doge.scaling.items import FetchError, Item, list_items

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

    monkeypatch.setattr(item_reading, "_PAUSE_SECONDS", 0.0)
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
            list(samples_of_item(blocks, item))
        return
    np.testing.assert_array_equal(np.concatenate(list(samples_of_item(blocks, item))), expected)


def test_recordings_are_read_ahead_in_order_and_can_be_left(folder: Path) -> None:
    reader = ItemReader(decoders=2, attempts=1, memory=500_000_000, channel=None)
    items = list_items([str(folder)]) * 3
    lengths = []
    for reading in reader.read_ahead(items):
        blocks = reading.blocks(lambda note: None)
        lengths.append(len(next(blocks)))  # and the rest is left
    assert lengths == [4000] * 9
    reader.close()


def write_shar(folder: Path, cuts: dict[str, dict[str, object]], sounds: dict[str, bytes], number: int = 0) -> None:
    """A shard as lhotse lays it out: a cut a line, and of each its sound and then the sound's own description."""
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"id": name, "type": "MonoCut", "channel": 0} | cut) for name, cut in cuts.items()]
    with gzip.open(folder / f"cuts.{number:06}.jsonl.gz", "wt") as file:
        file.write("\n".join(lines) + "\n")
    write_tar(folder / f"recording.{number:06}.tar", sounds)


def test_cuts_of_a_shar_folder(folder: Path, tmp_path: Path) -> None:
    sound = (folder / "c.flac").read_bytes()
    described = json.dumps({"id": "r", "sampling_rate": RATE, "num_samples": 4000, "duration": 0.25}).encode()
    cuts: dict[str, dict[str, object]] = {
        "b/whole": {"start": 0, "duration": 0.25},
        "silent": {"start": 0, "duration": 1.0},
        "part.of.it": {"start": 0.0625, "duration": 0.125},
    }
    sounds = {
        "b/whole.original": sound,  # a name that tells nothing of its kind
        "b/whole.json": described,
        "silent.nodata": b"",
        "silent.nometa": b"",
        "part.of.it.flac": sound,
        "part.of.it.json": described,
    }
    shar = tmp_path / "shar"
    write_shar(shar, cuts, sounds)
    write_shar(shar, {"last": {"start": 0, "duration": 0.25}}, {"last.flac": sound, "last.json": described}, 1)
    memory = fsspec.filesystem("memory")
    for path in shar.iterdir():
        memory.pipe(f"/shar/{path.name}", path.read_bytes())
    for source in (str(shar), "memory://shar"):
        items = list_items([source])
        tars = [f"{source}/recording.{number:06}.tar" for number in (0, 0, 1)]
        members = ["b/whole.original", "part.of.it.flac", "last.flac"]
        assert [item.name for item in items] == [f"{tar}#{name}" for tar, name in zip(tars, members, strict=True)]
        assert [(item.offset, item.duration) for item in items] == [(0, None), (0.0625, 0.125), (0, None)]
        assert [content(item) for item in items] == [sound] * 3


@pytest.mark.parametrize("cuts", [["b"], ["a", "b"], []])
def test_cuts_and_sounds_of_shar_that_do_not_belong_together(tmp_path: Path, cuts: list[str]) -> None:
    sounds = {"a.flac": b"sound", "a.json": b'{"duration": 1}'}
    write_shar(tmp_path / "shar", {name: {"start": 0, "duration": 1} for name in cuts}, sounds)
    with pytest.raises(DataError, match=r"recording\.000000\.tar has .* where .*cuts\.000000\.jsonl\.gz has"):
        list_items([str(tmp_path / "shar")])


def test_a_folder_of_tar_files(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    for name in ("b", "a"):
        write_tar(tmp_path / "tars" / f"{name}.tar", {f"{name}.wav": (folder / "a.wav").read_bytes()})
    assert names([tmp_path / "tars"]) == [f"{tmp_path}/tars/{name}.tar#{name}.wav" for name in ("a", "b")]


def test_a_row_group_is_read_once_for_all_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"bytes": b"%d" % number, "path": None} for number in range(20)]
    parquet.write_table(arrow.table({"audio": rows}), tmp_path / "d.parquet", row_group_size=7)
    read: list[int] = []
    honest = parquet.ParquetFile.read_row_group

    def counted(self: object, group: int, *arguments: object, **options: object) -> object:
        read.append(group)
        return honest(self, group, *arguments, **options)

    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", counted)
    items = list_items([str(tmp_path / "d.parquet")])
    assert [content(item) for item in items] == [row["bytes"] for row in rows]
    assert read == [0, 1, 2]
    parquet.write_table(arrow.table({"audio": rows[::-1]}), tmp_path / "d.parquet", row_group_size=7)
    assert content(list_items([str(tmp_path / "d.parquet")])[0]) == b"19"  # a changed file is read anew


def test_a_row_group_that_cannot_be_read_once_is_read_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"bytes": b"%d" % number, "path": None} for number in range(4)]
    parquet.write_table(arrow.table({"audio": rows}), tmp_path / "d.parquet", row_group_size=2)
    items = list_items([str(tmp_path / "d.parquet")])
    assert content(items[0]) == b"0"
    with monkeypatch.context() as broken:
        broken.setattr(parquet.ParquetFile, "read_row_group", lambda *_, **__: (_ for _ in ()).throw(OSError(5, "EIO")))
        with pytest.raises(FetchError, match="EIO"):
            open_item(items[2])
    assert [content(item) for item in items] == [b"0", b"1", b"2", b"3"]


def test_a_damaged_row_group_is_the_fault_of_its_rows(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "d.parquet"
    rows = [{"bytes": bytes(1000), "path": None} for _ in range(4)]
    parquet.write_table(arrow.table({"audio": rows}), path, row_group_size=4, compression="none")
    items = list_items([str(path)])
    damaged = bytearray(path.read_bytes())
    damaged[4:200] = b"\xff" * 196
    path.write_bytes(damaged)
    with pytest.raises(AudioError) as caught:
        open_item(items[0])
    assert not isinstance(caught.value, FetchError)


@pytest.mark.parametrize(
    ("error", "passes"), [(PermissionError(13, "Permission denied"), False), (OSError(5, "Input/output error"), True)]
)
def test_what_may_pass_is_told_from_what_does_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, passes: bool
) -> None:
    def broken(path: Path, mode: str) -> io.BufferedReader:
        raise error

    (item,) = list_items([str(folder / "a.wav")])
    monkeypatch.setattr(Path, "open", broken)
    with pytest.raises(AudioError) as caught:
        open_item(item)
    assert isinstance(caught.value, FetchError) == passes


def test_a_file_that_was_listed_and_is_not_on_this_machine_is_no_failure_of_its_own(folder: Path) -> None:
    (item,) = list_items([str(folder / "a.wav")])
    (folder / "a.wav").unlink()
    with pytest.raises(FetchError, match=r"a\.wav was listed and is not on .*: share its folder"):
        open_item(item)
    (item,) = list_items([str(folder / "a.wav")])  # which the list knows to be missing
    with pytest.raises(AudioError, match="does not exist") as caught:
        open_item(item)
    assert not isinstance(caught.value, FetchError)


def test_damaged_parquet_behind_a_url_is_no_outage(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "d.parquet"
    rows = [{"bytes": bytes(1000), "path": None} for _ in range(4)]
    parquet.write_table(arrow.table({"audio": rows}), path, row_group_size=4, compression="none")
    damaged = bytearray(path.read_bytes())
    damaged[4:200] = b"\xff" * 196
    fsspec.filesystem("memory").pipe("/damaged/d.parquet", bytes(damaged))
    item = list_items(["memory://damaged/d.parquet"])[0]
    with pytest.raises(AudioError, match=r"d\.parquet#0 cannot be opened") as caught:
        open_item(item)
    assert not isinstance(caught.value, FetchError)
