"""Each layout is read as its authors lay it out, and a wrong split names the right ones."""

import json
from pathlib import Path

import pytest

from asr_doge.data.corpora import CORPORA, find_corpus
from asr_doge.errors import ConfigError, DataError
from tests.data.corpus_layouts import write_fsdd, write_librispeech, write_recording


def ids(dataset: str, folder: Path, split: str) -> list[str]:
    return [utterance.id for utterance in find_corpus(dataset).read(folder, split)]


def test_librispeech_with_and_without_its_outer_folder(tmp_path: Path) -> None:
    write_librispeech(tmp_path)
    listed = find_corpus("librispeech").read(tmp_path, "train-clean-100")
    assert listed == find_corpus("librispeech").read(tmp_path / "LibriSpeech", "train-clean-100")
    assert [(u.id, u.raw_text, u.speaker) for u in listed] == [
        ("19-198-0000", "NORTHANGER ABBEY", "19"),
        ("19-198-0001", "IT'S A SMALL-TOWN STORY", "19"),
        ("26-198-0000", "HELLO", "26"),
    ]
    assert all(u.audio_path.is_file() for u in listed)


def test_librispeech_recording_without_a_line(tmp_path: Path) -> None:
    chapter = write_librispeech(tmp_path) / "LibriSpeech" / "dev-clean" / "84" / "198"
    write_recording(chapter / "84-198-0009.flac")
    problems = {u.id: u.problem for u in find_corpus("librispeech").read(tmp_path, "dev-clean")}
    assert problems == {"84-198-0000": None, "84-198-0009": "84-198.trans.txt does not list it"}


def test_fsdd_splits_by_take_and_speaker(tmp_path: Path) -> None:
    write_fsdd(tmp_path)
    sizes = {
        "all": 48,
        "test": 20,  # 5 takes of 2 digits by 2 speakers
        "train": 28,
        "dev": 20,
        "train-without-dev": 8,
        "lucas": 24,
        "train-without-lucas": 14,
        "test-of-lucas": 10,
        "train-without-dev-without-lucas": 4,
    }
    assert {split: len(ids("fsdd", tmp_path, split)) for split in sizes} == sizes
    assert not set(ids("fsdd", tmp_path, "train")) & set(ids("fsdd", tmp_path, "test"))
    (first, *_) = find_corpus("fsdd").read(tmp_path / "recordings", "test")
    assert (first.id, first.raw_text, first.speaker) == ("3_george_0", "three", "george")


def test_fsdd_default_splits_share_no_recording(tmp_path: Path) -> None:
    write_fsdd(tmp_path)
    default_ids = [ids("fsdd", tmp_path, split) for split in CORPORA["fsdd"].default_splits]
    assert len({id_ for split in default_ids for id_ in split}) == sum(map(len, default_ids)) == 48


def test_folder_of_recordings_with_text_beside(tmp_path: Path) -> None:
    for name, text in [("train/deep/a.wav", "One"), ("train/b.v2.flac", "Two\n"), ("test/a.wav", "Three")]:
        write_recording(tmp_path / name).with_suffix(".txt").write_text(text)
    write_recording(tmp_path / "test" / "c.wav")
    write_recording(tmp_path / "test" / "d.wav").with_suffix(".txt").write_bytes(b"caf\xe9")
    train = find_corpus("folder").read(tmp_path, "train")
    assert [(u.id, u.raw_text) for u in train] == [("train/b.v2", "Two"), ("train/deep/a", "One")]
    test = find_corpus("folder").read(tmp_path, "test")
    problems = {u.id: u.problem for u in test}
    assert problems["test/c"] == "c.txt is missing"
    assert "not UTF-8" in (problems["test/d"] or "")
    assert len(ids("folder", tmp_path, "all")) == len(ids("folder", tmp_path, ".")) == 5


@pytest.mark.parametrize("name", ["train.jsonl", "train.json", "train_manifest.json"])
def test_manifests_by_any_of_their_names(tmp_path: Path, name: str) -> None:
    line = {"audio_filepath": "clips/x.wav", "text": "HELLO", "speaker": "s1"}
    (tmp_path / name).write_text(json.dumps(line) + "\n")
    (utterance,) = find_corpus("manifest").read(tmp_path, "train")
    assert (utterance.id, utterance.raw_text, utterance.speaker) == ("x", "HELLO", "s1")
    assert utterance.audio_path == tmp_path / "clips" / "x.wav"


def test_unknown_split_names_those_that_exist(tmp_path: Path) -> None:
    write_librispeech(tmp_path / "libri")
    write_fsdd(tmp_path / "fsdd", takes=1)
    write_recording(tmp_path / "folder" / "eval" / "a.wav")
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "heldout_manifest.json").touch()
    cases = {
        "librispeech": ("libri", "dev-clean, test-clean, train-clean-100"),
        "fsdd": ("fsdd", "train, dev, test, all, george, lucas, train-without-dev"),
        "folder": ("folder", "all, eval"),
        "manifest": ("manifests", "heldout"),
    }
    assert cases.keys() == CORPORA.keys()
    for dataset, (folder, splits) in cases.items():
        with pytest.raises(DataError, match=f"no split 'trian': choose from {splits}"):
            ids(dataset, tmp_path / folder, "trian")
    with pytest.raises(DataError, match="no split 'train-without-bob'"):
        ids("fsdd", tmp_path / "fsdd", "train-without-bob")


def test_wrong_folder_or_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere is no folder: give --data_dir"):
        ids("fsdd", tmp_path / "nowhere", "train")
    with pytest.raises(DataError, match=r"expected DIGIT_SPEAKER_TAKE.wav.*--dataset"):
        ids("fsdd", tmp_path, "train")
    with pytest.raises(ConfigError, match="--dataset libri is unknown: choose from librispeech, fsdd"):
        find_corpus("libri")
