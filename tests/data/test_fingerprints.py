"""A copied or moved recording is known again, once read; another one is noticed."""

import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_doge.data import fingerprints
from asr_doge.data.fingerprints import KNOWN_COPIES, KnownCopies, audio_stamp, fingerprint
from asr_doge.data.stores import open_store
from asr_doge.errors import DataError


def write(path: Path, content: bytes, seconds: int) -> Path:
    path.write_bytes(content)
    os.utime(path, (seconds, seconds))
    return path


def is_same(cache: Path, path: Path, print_: str, *, verify: bool = False) -> bool:
    (same,) = KnownCopies(open_store(cache)).unchanged([(path, print_)], verify=verify)
    return same


contents = st.sampled_from([b"sound", b"noise", b"longer sound"])


@settings(max_examples=60)
@given(contents, contents, st.sampled_from([1, 2]), st.booleans())
def test_content_decides_where_the_time_has_changed(before: bytes, after: bytes, seconds: int, verify: bool) -> None:
    with TemporaryDirectory() as name:
        path, cache = Path(name) / "a.wav", Path(name) / "cache"
        cache.mkdir()
        print_ = fingerprint(write(path, before, 1))
        write(path, after, seconds)
        taken_for_it = len(before) == len(after) and seconds == 1 and not verify  # of the same size and time
        for _ in range(2):
            assert is_same(cache, path, print_, verify=verify) == (before == after or taken_for_it)


def test_a_copied_corpus_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, cache = tmp_path / "corpus", tmp_path / "cache"
    corpus.mkdir()
    cache.mkdir()
    paths = [write(corpus / f"{number}.wav", bytes([number]) * 9, 1) for number in range(20)]
    prints = {path.name: fingerprint(path) for path in paths}
    shutil.copytree(corpus, tmp_path / "copy", copy_function=shutil.copyfile)  # as cp -r does, with new times
    copies = [(path, prints[path.name]) for path in sorted((tmp_path / "copy").iterdir())]
    read: list[Path] = []
    digest = fingerprints.content_digest

    def counted(path: Path) -> str:
        read.append(path)
        return digest(path)

    monkeypatch.setattr(fingerprints, "content_digest", counted)
    assert KnownCopies(open_store(cache)).unchanged(copies) == [True] * 20
    assert len(read) == 20
    assert KnownCopies(open_store(cache)).unchanged(copies) == [True] * 20
    assert len(read) == 20
    (corpus / "0.wav").rename(corpus / "moved.wav")
    assert is_same(cache, corpus / "moved.wav", prints["0.wav"])
    assert len(read) == 20
    write(tmp_path / "copy" / "3.wav", b"other len", 5)
    found = KnownCopies(open_store(cache)).unchanged(copies)
    assert [path.name for (path, _), same in zip(copies, found, strict=True) if not same] == ["3.wav"]


def test_a_note_that_was_cut_or_cannot_be_written_costs_a_reading_only(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", b"sound", 1)
    print_ = fingerprint(path)
    write(path, b"sound", 2)
    (tmp_path / KNOWN_COPIES).write_bytes(b"5-20\xff")
    assert is_same(tmp_path, path, print_)
    assert fingerprint(path) in (tmp_path / KNOWN_COPIES).read_text(errors="replace").splitlines()
    assert is_same(tmp_path / "no folder", path, print_)
    (same,) = KnownCopies(open_store("memory://cache")).unchanged([(path, print_)])
    assert same


def test_a_cache_of_an_older_version_knows_size_and_time_only(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", b"sound", 1)
    assert is_same(tmp_path, path, audio_stamp(path))
    assert not is_same(tmp_path, path, audio_stamp(path), verify=True)
    old = audio_stamp(path)
    write(path, b"sound", 2)
    assert not is_same(tmp_path, path, old)


def test_what_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone.wav cannot be read"):
        fingerprint(tmp_path / "gone.wav")
    assert not is_same(tmp_path, tmp_path / "gone.wav", "5-5-ab")
    assert not is_same(tmp_path, tmp_path / ("n" * 300), "5-5-ab")
