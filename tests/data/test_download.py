"""Corpora are unpacked whole or not at all, once, and never outside their folder."""

import hashlib
import io
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from asr_doge.cli import main
from asr_doge.data import transfer
from asr_doge.data.configuration import DownloadConfig
from asr_doge.data.corpora import PUBLISHED, Archive, Corpus, find_corpus
from asr_doge.data.download import download, list_corpora
from asr_doge.data.extraction import unpack
from asr_doge.errors import ConfigError, DataError
from tests.cli.test_scripts import run_script
from tests.data.corpus_layouts import write_librispeech
from tests.data.http_server import Behaviour, serve


def packed(folder: Path, *names: str, mode: str = "w:gz") -> bytes:
    """An archive of some folders and files below `folder`."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as tar:  # type: ignore[call-overload]
        for name in names:
            tar.add(folder / name, name)
    return content.getvalue()


def archive_of(tmp_path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    path = tmp_path / "bad.tar"
    with tarfile.open(path, "w") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def dev_clean(tmp_path: Path) -> bytes:
    """LibriSpeech's dev-clean, much smaller."""
    write_librispeech(tmp_path / "source")
    (tmp_path / "source" / "LibriSpeech" / "README.TXT").write_text("read me")
    return packed(tmp_path / "source", "LibriSpeech/README.TXT", "LibriSpeech/dev-clean")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def small_librispeech(dev_clean: bytes, monkeypatch: pytest.MonkeyPatch) -> dict[str, Archive]:
    """The declaration of LibriSpeech, with the size and checksum of the small archive."""
    archives = {
        "dev-clean": Archive(
            urls=("http://127.0.0.1:9/dev-clean.tar.gz",),
            unpacks_to="LibriSpeech/dev-clean",
            unpacked_bytes=100_000,
            bytes=len(dev_clean),
            md5=hashlib.md5(dev_clean).hexdigest(),
            hours=0.001,
        )
    }
    monkeypatch.setitem(PUBLISHED, "librispeech", declared(archives))
    return archives


def declared(archives: dict[str, Archive]) -> Corpus:
    return replace(PUBLISHED["librispeech"], archives=archives)


def config(tmp_path: Path, mirror: str) -> DownloadConfig:
    return DownloadConfig(["librispeech"], tmp_path / "data", ["dev-clean"], mirror)


@pytest.mark.usefixtures("small_librispeech")
def test_a_split_is_fetched_unpacked_and_read_and_then_left_alone(tmp_path: Path, dev_clean: bytes) -> None:
    with serve(behaviour := Behaviour(dev_clean, drop_after=len(dev_clean) // 2 + 1)) as mirror:
        (first,) = download(config(tmp_path, mirror))
        (second,) = download(config(tmp_path, mirror))
    assert (first.outcome, second.outcome) == ("fetched", "already there")
    assert behaviour.requests == 2
    assert sorted(path.name for path in (tmp_path / "data" / "LibriSpeech").iterdir()) == ["README.TXT", "dev-clean"]
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["LibriSpeech"]
    (utterance,) = find_corpus("librispeech").read(tmp_path / "data", "dev-clean")
    assert utterance.id == "84-198-0000"


@pytest.mark.usefixtures("small_librispeech")
def test_an_archive_can_be_kept_and_used_again(tmp_path: Path, dev_clean: bytes) -> None:
    with serve(behaviour := Behaviour(dev_clean)) as mirror:
        settings = config(tmp_path, mirror)
        settings.keep_archives = True
        list(download(settings))
        shutil.rmtree(tmp_path / "data" / "LibriSpeech")
        assert [result.outcome for result in download(settings)] == ["fetched"]
    assert behaviour.requests == 1
    assert (tmp_path / "data" / "dev-clean.tar.gz").read_bytes() == dev_clean


def test_a_bad_archive_does_not_stop_the_others(
    tmp_path: Path,
    dev_clean: bytes,
    small_librispeech: dict[str, Archive],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = Archive(("http://127.0.0.1:9/bad.tar.gz",), "LibriSpeech/bad", 1000, len(dev_clean), "0" * 32, None)
    monkeypatch.setitem(PUBLISHED, "librispeech", declared({"bad": bad, **small_librispeech}))
    with serve(Behaviour(dev_clean)) as mirror:
        flags = ["--output_dir", str(tmp_path / "data"), "--splits", "bad", "dev-clean", "--mirror", mirror]
        code = main(["download", "librispeech", *flags])
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out.splitlines() == [
        f"librispeech dev-clean: fetched, {tmp_path / 'data' / 'LibriSpeech' / 'dev-clean'}",
        "1 failed, 1 fetched",
    ]
    (error,) = printed.err.splitlines()
    assert error.startswith("error: bad.tar.gz cannot be fetched")
    assert "not " + "0" * 32 in error


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz", "w"])
def test_a_truncated_archive_leaves_nothing(tmp_path: Path, dev_clean: bytes, mode: str) -> None:
    content = packed(tmp_path / "source", "LibriSpeech/dev-clean", mode=mode)
    for end in (20, len(content) // 2, len(content) - 4):
        if mode == "w" and end == len(content) - 4:
            continue  # within the padding at the end
        (tmp_path / "cut.tar").write_bytes(content[:end])
        with pytest.raises(DataError, match=r"cut.tar is truncated or damaged: remove it and run again"):
            unpack(tmp_path / "cut.tar", tmp_path, "LibriSpeech/dev-clean")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.tar", "source"]


def test_a_flipped_bit_is_found_without_a_checksum_of_ours(tmp_path: Path, dev_clean: bytes) -> None:
    damaged = bytearray(dev_clean)
    damaged[-6] ^= 1  # in the checksum that gzip itself keeps
    (tmp_path / "a.tar.gz").write_bytes(damaged)
    with pytest.raises(DataError, match="truncated or damaged"):
        unpack(tmp_path / "a.tar.gz", tmp_path, "LibriSpeech/dev-clean")
    assert not (tmp_path / "LibriSpeech").exists()


@pytest.mark.parametrize("name", ["../outside.txt", "/tmp/outside.txt", "LibriSpeech/../../outside.txt"])
def test_no_file_leads_out(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    archive = archive_of(
        tmp_path, (tarfile.TarInfo("LibriSpeech/dev-clean/a.txt"), b"a"), (tarfile.TarInfo(name), b"x")
    )
    with pytest.raises(DataError, match=r"is not safe to unpack: .*leads out of it"):
        unpack(archive, tmp_path / "in", "LibriSpeech/dev-clean")
    assert list((tmp_path / "in").iterdir()) == []
    assert not (tmp_path / "outside.txt").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("target", ["/etc", "../../..", "a.txt"])
def test_no_link_is_made_and_none_is_followed(tmp_path: Path, kind: bytes, target: str) -> None:
    link = tarfile.TarInfo("corpus/link")
    link.type, link.linkname = kind, target
    through = tarfile.TarInfo("corpus/link/through.txt")
    (tmp_path / "in").mkdir()
    archive = archive_of(tmp_path, (tarfile.TarInfo("corpus/a.txt"), b"a"), (link, b""), (through, b"x"))
    unpack(archive, tmp_path / "in", "corpus")
    assert sorted(path.relative_to(tmp_path / "in").as_posix() for path in (tmp_path / "in").rglob("*")) == [
        *("corpus", "corpus/a.txt", "corpus/link", "corpus/link/through.txt")
    ]
    assert not any(path.is_symlink() for path in (tmp_path / "in").rglob("*"))


def test_no_device_is_made(tmp_path: Path) -> None:
    pipe = tarfile.TarInfo("corpus/pipe")
    pipe.type = tarfile.FIFOTYPE
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match="not safe to unpack"):
        unpack(archive_of(tmp_path, (pipe, b"")), tmp_path / "in", "corpus")
    assert list((tmp_path / "in").iterdir()) == []


def test_what_a_killed_run_left_is_not_taken_for_whole(tmp_path: Path, dev_clean: bytes) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dev-clean.tar.gz").write_bytes(dev_clean)
    left = tmp_path / "data" / ".dev-clean.tar.gz.unpacking" / "LibriSpeech" / "dev-clean" / "half"
    left.mkdir(parents=True)
    unpack(tmp_path / "data" / "dev-clean.tar.gz", tmp_path / "data", "LibriSpeech/dev-clean")
    assert [path.name for path in (tmp_path / "data" / "LibriSpeech" / "dev-clean").iterdir()] == ["84"]
    assert not left.exists()


def test_a_disk_that_fills_up_is_one_line_and_leaves_the_archive_alone(small_disk: Path) -> None:
    (small_disk / "source" / "corpus").mkdir(parents=True)
    (small_disk / "source" / "corpus" / "zeros.wav").write_bytes(bytes(1_200_000))
    (small_disk / "a.tar.gz").write_bytes(packed(small_disk / "source", "corpus"))
    with pytest.raises(DataError, match=r"a.tar.gz cannot be unpacked to .* \(No space left on device\)"):
        unpack(small_disk / "a.tar.gz", small_disk, "corpus")
    assert sorted(path.name for path in small_disk.iterdir()) == ["a.tar.gz", "source"]


def test_another_archive_is_refused(tmp_path: Path, dev_clean: bytes) -> None:
    (tmp_path / "a.tar.gz").write_bytes(dev_clean)
    with pytest.raises(DataError, match=r"a.tar.gz holds no LibriSpeech/dev-other: it is another archive"):
        unpack(tmp_path / "a.tar.gz", tmp_path, "LibriSpeech/dev-other")
    assert not (tmp_path / "LibriSpeech").exists()


def test_a_disk_without_room_is_found_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10_000_000_000))
    settings = DownloadConfig(["librispeech"], tmp_path / "data", ["train-clean-100", "dev-clean"])
    with pytest.raises(DataError, match=r"data has 10.0 GB free, and 2 archives .* need 14.5 GB: free some"):
        list(download(settings))
    assert not (tmp_path / "data").exists()


def test_mistakes_are_named(tmp_path: Path) -> None:
    for corpora, splits, named in [
        ([], [], "no corpus named: choose from librispeech"),
        (["timit"], [], "corpus 'timit' is unknown"),
        (["librispeech"], ["train"], "--splits train: librispeech has train-clean-100"),
        (["librispeech", "fsdd"], ["all"], "--splits goes with one corpus"),
    ]:
        with pytest.raises(ConfigError, match=named):
            list(download(DownloadConfig(corpora, tmp_path / "data", splits)))
    with pytest.raises(ConfigError, match="--timeout 0"):
        DownloadConfig(timeout=0)


def test_every_corpus_is_listed_with_its_licence_and_checksum() -> None:
    lines = list_corpora()
    for name, corpus in PUBLISHED.items():
        assert corpus.licence
        for split, archive in corpus.archives.items():
            assert any(
                line.split()[:2] == [name, split] and (archive.md5 or "not known") in line and corpus.licence in line
                for line in lines
            )
            assert archive.md5 is None or len(archive.md5) == 32
            assert archive.unpacked_bytes >= (archive.bytes or 0)
            assert archive.unpacks_to.split("/")[0] == corpus.root


def test_the_script_is_the_command(python: Path, tmp_path: Path) -> None:
    finished = run_script(python, "scripts/download_librispeech.py", "--output_dir", tmp_path, "--splits", "dev-clear")
    assert (finished.returncode, finished.stdout) == (2, "")
    (line,) = finished.stderr.splitlines()
    assert line.startswith("error: --splits dev-clear: librispeech has train-clean-100,")
