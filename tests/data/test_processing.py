"""Every recording is kept or accounted for, and the manifests are what training reads."""

import json
from pathlib import Path

import pytest

from asr_doge.data import ProcessConfig, process_corpus, read_manifest, write_manifest
from asr_doge.errors import ConfigError, DataError
from tests.data.corpus_layouts import write_fsdd, write_librispeech, write_recording


def write_pair(path: Path, text: str = "hello", seconds: float = 1.0) -> None:
    write_recording(path, seconds).with_suffix(".txt").write_text(text)


def config_for_folder(tmp_path: Path) -> ProcessConfig:
    return ProcessConfig(tmp_path / "corpus", tmp_path / "out", "folder", "all", dev_split="", test_split="")


def test_librispeech_by_default(tmp_path: Path) -> None:
    write_librispeech(tmp_path / "corpus")
    report = process_corpus(ProcessConfig(tmp_path / "corpus", tmp_path / "out"))
    assert [(split.role, split.split, split.kept, split.speakers) for split in report.splits] == [
        ("train", "train-clean-100", 3, 2),
        ("dev", "dev-clean", 1, 1),
        ("test", "test-clean", 1, 1),
    ]
    assert report.warnings == ()
    train = read_manifest(tmp_path / "out" / "train_manifest.json")
    assert [u.text for u in train] == ["northanger abbey", "it's a small town story", "hello"]
    assert train[1].raw_text == "IT'S A SMALL-TOWN STORY"
    assert train[0].duration == pytest.approx(1.0)
    assert "train (train-clean-100): 3 utterances, 0.00 h, 2 speakers" in report.lines()[0]


def test_same_corpus_same_bytes_and_no_other_files(tmp_path: Path) -> None:
    write_librispeech(tmp_path / "corpus")
    config = ProcessConfig(tmp_path / "corpus", tmp_path / "out")
    process_corpus(config)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    process_corpus(config)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert before.keys() == {"train_manifest.json", "dev_manifest.json", "test_manifest.json"}


def test_bad_recordings_are_counted_and_the_rest_survives(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    write_pair(corpus / "good.wav")
    write_pair(corpus / "short.wav", seconds=0.4)
    write_pair(corpus / "long.wav", seconds=31)
    write_pair(corpus / "wordless.wav", "?!")
    write_pair(corpus / "twice.flac")
    write_pair(corpus / "twice.wav")
    write_recording(corpus / "untold.wav")
    for number in range(7):
        write_pair(corpus / f"broken{number}.wav")
        (corpus / f"broken{number}.wav").write_bytes(b"RIFF, but no sound")
    (report,) = process_corpus(config_for_folder(tmp_path)).splits
    assert report.dropped == {
        "empty text": 1,
        "id used twice": 1,
        "longer than 30 s": 1,
        "no transcript": 1,
        "shorter than 0.5 s": 1,
        "unreadable audio": 7,
    }
    assert [u.id for u in read_manifest(report.manifest)] == ["good", "twice"]
    assert len(report.examples) == 6
    assert "broken0.wav" in report.examples[0]
    assert report.examples[-1] == "and 5 more"
    assert any("dropped 7: unreadable audio" in line for line in report.lines())


def test_manifest_naming_missing_audio(tmp_path: Path) -> None:
    write_recording(tmp_path / "corpus" / "here.wav", 2.0, 8_000)
    lines = [{"audio_filepath": f"{name}.wav", "text": name.upper(), "duration": 9} for name in ("here", "gone")]
    (tmp_path / "corpus" / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = ProcessConfig(tmp_path / "corpus", tmp_path / "out", "manifest", dev_split="", test_split="")
    (report,) = process_corpus(config).splits
    assert report.dropped == {"missing audio": 1}
    (utterance,) = read_manifest(report.manifest)
    assert (utterance.text, utterance.raw_text, utterance.duration) == ("here", "HERE", 2.0)


def test_nothing_usable_is_an_error_and_writes_nothing(tmp_path: Path) -> None:
    write_pair(tmp_path / "corpus" / "train" / "a.wav")
    write_pair(tmp_path / "corpus" / "dev" / "b.wav", seconds=0.1)
    config = ProcessConfig(tmp_path / "corpus", tmp_path / "out", "folder", test_split="")
    with pytest.raises(DataError, match=r"split 'dev' .* can be kept: 1 shorter than 0.5 s; change --min_duration"):
        process_corpus(config)
    assert not (tmp_path / "out").exists()


def test_missing_split_writes_nothing(tmp_path: Path) -> None:
    write_pair(tmp_path / "corpus" / "train" / "a.wav")
    with pytest.raises(DataError, match="no split 'dev': choose from all, train"):
        process_corpus(ProcessConfig(tmp_path / "corpus", tmp_path / "out", "folder"))
    assert not (tmp_path / "out").exists()


def test_speakers_and_recordings_in_two_splits_are_reported(tmp_path: Path) -> None:
    write_fsdd(tmp_path / "corpus")
    config = ProcessConfig(tmp_path / "corpus", tmp_path / "out", "fsdd", "train", "dev", "test")
    in_dev, in_test = process_corpus(config).warnings
    assert in_dev.startswith("20 recordings in both train and dev")
    assert in_test.startswith("2 speakers in both train and test (george, lucas)")
    held_out = ProcessConfig(
        tmp_path / "corpus", tmp_path / "out", "fsdd", "train-without-lucas", "dev-of-lucas", "test-of-lucas"
    )
    assert process_corpus(held_out).warnings == ()


def test_limits_that_take_most_of_a_split_are_reported(tmp_path: Path) -> None:
    for number in range(4):
        write_pair(tmp_path / "corpus" / f"{number}.wav", seconds=0.3 if number else 1.0)
    (warning,) = process_corpus(config_for_folder(tmp_path)).warnings
    assert warning == "75% of train is shorter than 0.5 s: change --min_duration to keep it"


def test_manifest_never_replaces_its_own_source(tmp_path: Path) -> None:
    write_pair(tmp_path / "corpus" / "a.wav")
    process_corpus(config_for_folder(tmp_path))
    again = ProcessConfig(tmp_path / "out", tmp_path / "out", "manifest", dev_split="", test_split="")
    with pytest.raises(DataError, match="would overwrite its own source"):
        process_corpus(again)
    elsewhere = ProcessConfig(tmp_path / "out", tmp_path / "next", "manifest", dev_split="", test_split="")
    process_corpus(elsewhere)
    assert read_manifest(tmp_path / "next" / "train_manifest.json") == read_manifest(
        tmp_path / "out" / "train_manifest.json"
    )


def test_settings_that_cannot_work_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--sample_rate 8000 cannot be used"):
        ProcessConfig(tmp_path, tmp_path, sample_rate=8000)
    with pytest.raises(ConfigError, match=r"--min_duration 3.0 and --max_duration 2.0"):
        ProcessConfig(tmp_path, tmp_path, min_duration=3.0, max_duration=2.0)
    with pytest.raises(ConfigError, match="all empty"):
        process_corpus(ProcessConfig(tmp_path, tmp_path, train_split="", dev_split="", test_split=""))


def test_manifest_of_a_split_can_be_written_back(tmp_path: Path) -> None:
    write_pair(tmp_path / "corpus" / "a.wav")
    (report,) = process_corpus(config_for_folder(tmp_path)).splits
    before = report.manifest.read_bytes()
    write_manifest(report.manifest, read_manifest(report.manifest))
    assert report.manifest.read_bytes() == before
