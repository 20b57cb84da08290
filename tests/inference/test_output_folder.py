"""Two recordings never share a file, and what is there is made again when what it was made from has changed."""

import json
import os
import shutil
import string
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asr_doge.errors import ConfigError, DataError
from asr_doge.inference.output import FORMATS
from asr_doge.inference.output_folder import JOURNAL, OutputFolder, model_identity
from asr_doge.inference.results import Transcription
from asr_doge.models.checkpoints import BUNDLED_MODELS


def recording(path: Path, content: bytes = b"sound", seconds: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (seconds, seconds))
    return path


def folder_for(out: Path, *paths: Path, **options: Any) -> OutputFolder:
    """As `transcribe` has it of files that are named one by one."""
    formats = options.pop("formats", ["txt"])
    return OutputFolder(
        out, formats, options.pop("model", "nano"), {path: Path(path.name) for path in paths}, **options
    )


def test_files_are_named_like_their_recordings(tmp_path: Path) -> None:
    names = {Path("/x/a.wav"): Path("a.wav"), Path("/x/d/a.mp3"): Path("d/a.mp3"), Path("/x/d/a.wav"): Path("d/a.wav")}
    folder = OutputFolder(tmp_path / "out", ["srt", "textgrid"], "nano", names)
    assert folder.files(Path("/x/a.wav")) == [tmp_path / "out" / "a.srt", tmp_path / "out" / "a.TextGrid"]
    assert folder.files(Path("/x/d/a.mp3"))[0] == tmp_path / "out" / "d" / "a.mp3.srt"


def test_recordings_of_one_name_in_several_folders_keep_what_tells_them_apart(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("x/d1/a.wav", "x/d2/a.wav", "y/d2/a.wav", "d3/a.wav", "d3/a.mp3", "x/b.wav")]
    folder = folder_for(tmp_path / "out", *map(recording, paths))
    names = [folder.files(path)[0].relative_to(tmp_path / "out").as_posix() for path in paths]
    assert names == ["d1/a.txt", "x/d2/a.txt", "y/d2/a.txt", "d3/a.txt", "a.mp3.txt", "b.txt"]
    for path in paths:
        folder.write(Transcription(str(path), 1.0, path))
    assert [folder.files(path)[0].read_text().strip() for path in paths] == list(map(str, paths))


parts = st.text(st.sampled_from("ab. \u0436\u00e9") | st.sampled_from(string.ascii_letters), min_size=1, max_size=4)
long_parts = parts | st.builds(
    lambda letter, count: letter * (count // len(letter.encode())),
    st.sampled_from(["x", "\u0436", "\u4f60", "\U0001f600"]),
    st.integers(230, 255),
)


@settings(max_examples=60)
@given(
    st.sets(st.tuples(parts, long_parts, st.sampled_from(["", ".wav", ".mp3", ".wav.flac"])), min_size=1, max_size=6)
)
@example({("d", "x" * 245, ""), ("d", "x" * 251, ".wav"), ("d", "\u0436" * 123, ".wav"), ("e", "x" * 245, "")})
@example({("d", "a", ".wav"), ("d", "a", ".mp3"), ("d", "a.wav", ".flac"), ("e", "a", ".wav")})
def test_any_names_get_files_of_their_own(names: set[tuple[str, str, str]]) -> None:
    with TemporaryDirectory() as temporary:
        home = Path(temporary)
        paths = {home / f"in{first}" / (second + ending) for first, second, ending in names}
        paths = {path for path in paths if len(os.fsencode(path.name)) <= 255 and path.name.strip(".")}
        if not paths:
            return
        folder = folder_for(home / "out", *map(recording, sorted(paths)), formats=list(FORMATS))
        files = [file for path in paths for file in folder.files(path)]
        assert len(set(files)) == len(files) == len(paths) * len(FORMATS)
        assert all(file.resolve().is_relative_to((home / "out").resolve()) for file in files)
        for path in paths:
            written = folder.write(Transcription("one", 1.0, path))
            assert written == folder.files(path)
            assert all(file.is_file() for file in written)
        assert all(folder.is_done(path) for path in paths)
        left = {path for path in (home / "out").rglob("*") if path.is_file()} - {home / "out" / JOURNAL}
        assert left == set(files)


def test_what_has_changed_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = recording(tmp_path / "d1" / "a.wav"), tmp_path / "out"

    def state(which: Path = path, **options: Any) -> str:
        return folder_for(out, which, **options).state(which)

    assert state() == "missing"
    folder = folder_for(out, path, settings={"language": "de"})
    folder.write(Transcription("one", 1.0, path))
    assert folder.state(path) == "done"
    assert state(settings={"language": "de"}) == "done"
    assert state(settings={"language": None}) == "changed"
    assert state(settings={"language": "de"}, model="other") == "changed"
    assert state(settings={"language": "de"}, formats=["txt", "srt"]) == "missing"
    other = recording(tmp_path / "d2" / "a.wav")
    assert state(other, settings={"language": "de"}) == "changed"
    recording(path, b"other")  # of the same size and time
    assert state(settings={"language": "de"}) == "done"
    recording(path, b"longer sound")
    assert state(settings={"language": "de"}) == "changed"
    recording(path, b"sound", seconds=2)
    assert state(settings={"language": "de"}) == "changed"
    recording(path)
    monkeypatch.chdir(tmp_path)
    assert state(Path("d1/a.wav"), settings={"language": "de"}) == "done"
    path.unlink()
    assert state(settings={"language": "de"}) == "changed"  # its turn will tell that it is gone


def test_what_somebody_else_wrote_is_never_replaced_unasked(tmp_path: Path) -> None:
    """Such as the transcripts of a corpus, where the output goes to the corpus itself."""
    path = recording(tmp_path / "a.wav")
    (tmp_path / "a.txt").write_text("by a human")
    folder = folder_for(tmp_path, path, formats=["txt", "srt"])
    assert folder.state(path) == "missing"
    assert folder.write(Transcription("one", 1.0, path)) == [tmp_path / "a.srt"]
    assert (folder.state(path), folder.is_done(path)) == ("foreign", True)
    assert (tmp_path / "a.txt").read_text() == "by a human"
    folder = folder_for(tmp_path, path, overwrite=True)
    assert not folder.is_done(path)
    folder.write(Transcription("one", 1.0, path))
    assert (tmp_path / "a.txt").read_text() == "one\n"


@pytest.mark.parametrize("damage", [b'{"files": ["b.t', b"\xff\xfe\n", b"[]\n{}\n7\n", b'{"files": 5}\n'])
def test_a_damaged_journal_costs_its_own_lines(tmp_path: Path, damage: bytes) -> None:
    path, other = recording(tmp_path / "a.wav"), recording(tmp_path / "b.wav")
    out = tmp_path / "out"
    folder_for(out, path).write(Transcription("one", 1.0, path))
    with (out / JOURNAL).open("ab") as journal:
        journal.write(damage)
    folder_for(out, path, other).write(Transcription("two", 1.0, other))
    folder = folder_for(out, path, other)
    assert [folder.state(path), folder.state(other)] == ["done", "done"]


def test_a_model_is_known_by_its_files(tmp_path: Path) -> None:
    assert model_identity("acme/asr") == "acme/asr"
    weights = recording(tmp_path / "best" / "model.safetensors")
    before = model_identity(str(tmp_path / "best"))
    assert model_identity(str(tmp_path / "best")) == before
    recording(weights, b"other", seconds=2)
    assert model_identity(str(tmp_path / "best")) != before


def test_a_bundled_model_is_known_by_the_content_of_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = model_identity("nano")
    again = tmp_path / "again"
    shutil.copytree(BUNDLED_MODELS["nano"], again)
    for path in again.rglob("*"):
        os.utime(path, (1, 1))
    monkeypatch.setitem(BUNDLED_MODELS, "nano", again)
    assert model_identity("nano") == before
    weights = again / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert model_identity("nano") != before


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = recording(tmp_path / "a.wav")
    (tmp_path / "out" / "a.txt").mkdir(parents=True)
    folder = folder_for(tmp_path / "out", path)
    with pytest.raises(DataError, match=r"a.txt cannot be written \(Is a directory\)"):
        folder.write(Transcription("one", 1.0, path))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        OutputFolder(tmp_path / "file", ["txt"], "nano", {})


def test_the_journal_is_lines_of_json(tmp_path: Path) -> None:
    path = recording(tmp_path / os.fsdecode(b"caf\xe9.wav"))
    folder = folder_for(tmp_path / "out", path, formats=["txt", "srt"])
    folder.write(Transcription("one", 1.0, path))
    (line,) = (tmp_path / "out" / JOURNAL).read_text().splitlines()
    assert json.loads(line)["files"] == [file.name for file in folder.files(path)]
    assert folder.is_done(path)
