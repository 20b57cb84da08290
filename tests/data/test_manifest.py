"""A manifest comes back as it was written, moves with its recordings, and says where it is wrong."""

import json
import os
import string
from collections import Counter
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_doge.data.manifest import Utterance, read_manifest, sample_utterances, write_manifest
from asr_doge.errors import DataError

LINE = {"id": "a", "audio_path": "a.wav", "text": "hello", "duration": 1.5}

texts = st.text(st.characters(exclude_categories=["Cs"]))
file_names = st.text(string.ascii_letters + "éß你 .'\"\u2028", min_size=1).map(lambda name: f"x{name}.wav")
utterances = st.lists(
    st.builds(
        Utterance,
        id=st.text(min_size=1),  # lone surrogates included: they stand for undecodable bytes of file names
        audio_path=file_names.map(Path),
        text=texts,
        raw_text=texts,
        duration=st.floats(min_value=1e-3, max_value=1e5),
        speaker=st.none() | texts,
        language=st.none() | texts,
    ),
    min_size=1,
    unique_by=lambda utterance: utterance.id,
)


def write_lines(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


@settings(max_examples=50)
@given(utterances, st.sampled_from(["audio", ".", "../elsewhere"]))
def test_round_trip(written: list[Utterance], audio_folder: str) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder).resolve() / "corpus"
        audio = Path(os.path.normpath(root / audio_folder))
        written = [
            Utterance(u.id, audio / u.audio_path, u.text, u.raw_text, u.duration, u.speaker, u.language)
            for u in written
        ]
        write_manifest(root / "m.json", written)
        content = (root / "m.json").read_bytes()
        assert read_manifest(root / "m.json") == written
        write_manifest(root / "m.json", read_manifest(root / "m.json"))
        assert (root / "m.json").read_bytes() == content
        assert [path.name for path in root.iterdir()] == ["m.json"]


def test_nemo_manifest_and_defaults(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "m.json",
        {"audio_filepath": "/clips/x1.wav", "text": "Hi", "duration": 2, "speaker": 103, "offset": 0, "extra": [1]},
        "",
        {**LINE, "id": 7},
    )
    first, second = read_manifest(path)
    assert first == Utterance("/clips/x1", Path("/clips/x1.wav"), "Hi", "Hi", 2.0, "103")
    assert (second.id, second.audio_path) == ("7", tmp_path / "a.wav")


def test_folder_moves_with_its_recordings(tmp_path: Path) -> None:
    audio = tmp_path / "old" / "audio" / "a.wav"
    audio.parent.mkdir(parents=True)
    audio.touch()
    write_manifest(tmp_path / "old" / "manifests" / "m.json", [Utterance("a", audio, "hi", "Hi", 1.0)])
    (tmp_path / "old").rename(tmp_path / "new")
    (utterance,) = read_manifest(tmp_path / "new" / "manifests" / "m.json")
    assert utterance.audio_path.samefile(tmp_path / "new" / "audio" / "a.wav")


def test_relative_paths_survive_links(tmp_path: Path) -> None:
    (tmp_path / "disk" / "deep" / "out").mkdir(parents=True)
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.wav").touch()
    link = tmp_path / "out"
    link.symlink_to(tmp_path / "disk" / "deep" / "out")
    write_manifest(link / "m.json", [Utterance("a", tmp_path / "clips" / "a.wav", "hi", "Hi", 1.0)])
    for folder in (link, tmp_path / "disk" / "deep" / "out"):
        (utterance,) = read_manifest(folder / "m.json")
        assert utterance.audio_path.is_file()


def test_relative_manifest_gives_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines(tmp_path / "m.json", LINE)
    monkeypatch.chdir(tmp_path)
    (utterance,) = read_manifest("m.json")
    monkeypatch.chdir("/")
    assert utterance.audio_path == tmp_path / "a.wav"


@pytest.mark.parametrize(
    ("bad_line", "finding"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "not a JSON object"),
        ({**LINE, "audio_path": None}, "audio_path"),
        ({**LINE, "audio_path": 3}, "audio_path"),
        ({**LINE, "text": None}, "text"),
        ({**LINE, "text": 5}, "text"),
        ({**LINE, "duration": "1.0"}, "duration"),
        ({**LINE, "duration": None}, "asr-doge process"),
        ({**LINE, "duration": -1}, "duration"),
        ({**LINE, "duration": True}, "duration"),
        ({**LINE, "duration": float("nan")}, "duration"),
        ({**LINE, "offset": 3.2}, "offset"),
        ({**LINE, "id": "a0"}, "already that of line 1"),
        ({**LINE, "id": ["a"]}, "id"),
    ],
)
def test_bad_line_is_named(tmp_path: Path, bad_line: object, finding: str) -> None:
    path = write_lines(tmp_path / "m.json", {**LINE, "id": "a0"}, "", bad_line)
    with pytest.raises(DataError) as caught:
        read_manifest(path)
    message = str(caught.value)
    assert message.startswith(f"{path} line 3: ")
    assert finding in message
    assert "\n" not in message


@given(st.lists(st.text(), unique=True, max_size=30), st.integers(0, 35), st.randoms())
def test_a_sample_is_a_spread_that_no_order_changes(ids: list[str], count: int, random: Random) -> None:
    all_ = [Utterance(id_, Path("a.wav"), "x", "x", 1.0) for id_ in ids]
    sample = sample_utterances(all_, count)
    assert len(sample) == min(count, len(all_))
    assert sample == [utterance for utterance in all_ if utterance in sample]  # in the manifest's order
    assert {u.id for u in sample} <= {u.id for u in sample_utterances(all_, count + 1)}
    shuffled = random.sample(all_, len(all_))
    assert {u.id for u in sample_utterances(shuffled, count)} == {u.id for u in sample}


def test_a_sample_of_a_sorted_manifest_has_all_speakers() -> None:
    speakers = ["ann", "bob", "cy", "di"]
    all_ = [Utterance(f"{name}-{n}", Path("a.wav"), "x", "x", 1.0, name) for name in speakers for n in range(100)]
    counts = Counter(utterance.speaker for utterance in sample_utterances(all_, 80))
    assert counts.keys() == set(speakers)
    assert min(counts.values()) > 8
    assert [u.id for u in sample_utterances(all_, 3)] == ["ann-0", "bob-58", "di-6"]  # the same on every machine


def test_bad_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    with pytest.raises(DataError, match=r"m.json does not exist"):
        read_manifest(path)
    path.write_bytes(b"\n\n")
    with pytest.raises(DataError, match="holds no utterances"):
        read_manifest(path)
    path.write_bytes(b'\n{"text": "caf\xe9"}\n')
    with pytest.raises(DataError, match="line 2: not UTF-8"):
        read_manifest(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_manifest(tmp_path)


def test_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(LINE).encode() + b"\r\n")
    assert len(read_manifest(path)) == 1


def test_failed_write_leaves_the_old_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines(tmp_path / "m.json", LINE)
    before = path.read_bytes()

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(DataError, match=r"m.json cannot be written .No space left"):
        write_manifest(path, [Utterance("b", tmp_path / "b.wav", "x", "x", 1.0)])
    assert path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["m.json"]
    with pytest.raises(DataError, match="no utterances"):
        write_manifest(path, [])
    with pytest.raises(DataError, match="cannot be written"):
        write_manifest(path / "in a file" / "m.json", read_manifest(path))
