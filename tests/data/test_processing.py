"""Every recording is kept or accounted for, and the manifests are what training reads."""

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from asr_doge.audio import SAMPLE_RATE
from asr_doge.data import read_manifest, write_manifest
from asr_doge.data.configuration import ENCODER_SAMPLE_RATE, DownloadConfig, ProcessConfig
from asr_doge.data.download import download
from asr_doge.data.processing import process_corpus
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
    manifests = {"train_manifest.json", "dev_manifest.json", "test_manifest.json"}
    assert before.keys() == {*manifests, "dropped.tsv", "report.html"}


def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    write_librispeech(tmp_path / "corpus")
    contents = []
    for workers in (1, 7):
        process_corpus(ProcessConfig(tmp_path / "corpus", tmp_path / "out", num_workers=workers))
        contents.append({path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()})
    assert contents[0] == contents[1]


def test_manifests_move_with_the_corpus(tmp_path: Path) -> None:
    """By relative paths, spaces and other scripts included."""
    home = tmp_path / "old home"
    write_pair(home / "my corpus" / "größe 你好.wav", "größe")
    process_corpus(ProcessConfig(home / "my corpus", home / "out", "folder", "all", "", ""))
    home.rename(tmp_path / "new home")
    (utterance,) = read_manifest(tmp_path / "new home" / "out" / "train_manifest.json")
    assert utterance.audio_path.is_file()
    assert (utterance.id, utterance.text) == ("größe 你好", "größe")


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
    header, *dropped = (tmp_path / "out" / "dropped.tsv").read_text().splitlines()
    assert header == "manifest\tid\treason\tdetail"
    assert len(dropped) == 12
    assert "train\tshort\tshorter than 0.5 s\t" in dropped


def test_only_verifying_finds_damage_in_the_middle(tmp_path: Path) -> None:
    for name in ("whole", "bad"):
        write_pair(tmp_path / "corpus" / f"{name}.flac", seconds=2.0)
    bad = tmp_path / "corpus" / "bad.flac"
    content = bytearray(bad.read_bytes())
    content[len(content) // 2] ^= 1
    bad.write_bytes(content)
    headers_only = config_for_folder(tmp_path)
    assert process_corpus(headers_only).splits[0].dropped == {}
    (report,) = process_corpus(replace(headers_only, verify=True)).splits
    assert report.dropped == {"unreadable audio": 1}
    assert "bad.flac is truncated or corrupt" in report.examples[0]
    assert [u.duration for u in read_manifest(report.manifest)] == [2.0]


def test_a_recording_that_breaks_off_is_found_unasked(tmp_path: Path) -> None:
    for name in ("whole", "cut"):
        write_pair(tmp_path / "corpus" / f"{name}.flac", seconds=2.0)
    cut = tmp_path / "corpus" / "cut.flac"
    cut.write_bytes(cut.read_bytes()[:-20_000])
    (report,) = process_corpus(config_for_folder(tmp_path)).splits
    assert report.dropped == {"unreadable audio": 1}
    assert "cut.flac is truncated or corrupt" in report.examples[0]


def test_transcripts_outside_the_limits_are_counted(tmp_path: Path) -> None:
    for text in ("a", "fine", "quite a long one", "far too long to be said"):
        write_pair(tmp_path / "corpus" / f"{text}.wav", text)
    limits = replace(config_for_folder(tmp_path), min_chars=2, max_chars=20, max_chars_per_second=10.0)
    (report,) = process_corpus(limits).splits
    assert report.dropped == {
        "fewer than 2 characters": 1,
        "more than 10.0 characters a second": 1,
        "more than 20 characters": 1,
    }
    assert [u.id for u in read_manifest(report.manifest)] == ["fine"]


def test_a_language_is_the_corpus_own_or_the_one_given(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_recording(tmp_path / "corpus" / f"{name}.wav")
    lines = [{"audio_path": "a.wav", "text": "eins", "language": "de"}, {"audio_path": "b.wav", "text": "un"}]
    (tmp_path / "corpus" / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = ProcessConfig(
        tmp_path / "corpus", tmp_path / "out", "manifest", dev_split="", test_split="", language="fr"
    )
    (report,) = process_corpus(config).splits
    assert [u.language for u in read_manifest(report.manifest)] == ["de", "fr"]
    assert report.languages == ("de", "fr")


def test_the_page_shows_every_split_and_loads_nothing(tmp_path: Path) -> None:
    write_librispeech(tmp_path / "corpus")
    broken = tmp_path / "corpus" / "LibriSpeech" / "train-clean-100" / "19" / "198" / "19-198-0001.flac"
    broken.write_bytes(b"no sound")
    write_recording(broken.with_name("<script>.flac"))
    report = process_corpus(ProcessConfig(tmp_path / "corpus", tmp_path / "out"))
    page = report.page.read_text()
    tags: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.append(tag)  # type: ignore[method-assign]
    parser.feed(page)
    assert tags.count("svg") == 6
    assert "script" not in tags
    assert "&lt;script&gt;.flac" in page
    assert "train-clean-100" in page
    assert "unreadable audio" in page
    assert not re.search(r"(src|href|@import|url\()", page)
    assert [(split.words, split.vocabulary, split.characters) for split in report.splits[:1]] == [(3, 3, "abeghlnorty")]
    assert report.splits[1].unseen_share == 1.0
    assert report.lines()[-1] == f"4 utterances kept, 2 dropped; report: {report.page}"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    write_pair(tmp_path / "corpus" / "a.wav")
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(DataError, match="out cannot be written to: change the permissions of"):
        process_corpus(config_for_folder(tmp_path))


def test_a_read_only_disk_is_named(tmp_path: Path, small_disk: Path) -> None:
    write_pair(tmp_path / "corpus" / "a.wav")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for verb in (
        lambda out: process_corpus(replace(config_for_folder(tmp_path), output_dir=out)),
        lambda out: list(download(DownloadConfig(["mini_librispeech"], out))),
    ):
        with pytest.raises(DataError, match=r"out cannot be written to: change the permissions of .*disk, or choose"):
            verb(small_disk / "out")


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(tmp_path: Path, small_disk: Path) -> None:
    write_pair(tmp_path / "corpus" / "a.wav")
    config = replace(config_for_folder(tmp_path), output_dir=small_disk)
    fill = small_disk / "fill"
    fill.write_bytes(bytes(shutil.disk_usage(small_disk).free))
    with pytest.raises(DataError, match=r"train_manifest.json cannot be written \(No space left on device\): check"):
        process_corpus(config)
    assert [path.name for path in small_disk.iterdir()] == ["fill"]
    fill.unlink()
    assert process_corpus(config).splits[0].kept == 1


def test_output_that_cannot_be_written_is_found_before_the_work(tmp_path: Path) -> None:
    write_pair(tmp_path / "corpus" / "a.wav")
    (tmp_path / "out").touch()
    with pytest.raises(DataError, match=r"out cannot be made: .*out is a file; choose another folder"):
        process_corpus(config_for_folder(tmp_path))


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
    in_dev, of_dev, of_test = process_corpus(config).warnings
    assert in_dev.startswith("20 recordings in both train and dev (3_george_5, 3_george_6,")
    assert of_dev.startswith("2 speakers in both train and dev")
    assert of_test == "2 speakers in both train and test (george, lucas): test shows no new speakers"
    held_out = ProcessConfig(
        tmp_path / "corpus", tmp_path / "out", "fsdd", "train-without-lucas", "dev-of-lucas", "test-of-lucas"
    )
    assert process_corpus(held_out).warnings == ()


def test_a_recording_is_known_again_under_another_name(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("a", "b"):
            write_pair(tmp_path / "corpus" / split / f"{split}-{name}.wav")
    copy = tmp_path / "corpus" / "test" / "copy.wav"
    copy.write_bytes((tmp_path / "corpus" / "train" / "train-a.wav").read_bytes())
    copy.with_suffix(".txt").write_text("hello")
    config = ProcessConfig(tmp_path / "corpus", tmp_path / "out", "folder", dev_split="")
    assert process_corpus(config).warnings == (
        "1 recording in both train and test (test/copy): results on test will look too good",
    )


def test_an_id_of_two_recordings_in_two_splits_is_reported(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_recording(tmp_path / "corpus" / split / "x.wav")
        (tmp_path / "corpus" / f"{split}.csv").write_text(f"id,path,text\nx,{split}/x.wav,hello\n")
    (warning,) = process_corpus(ProcessConfig(tmp_path / "corpus", tmp_path / "out", "table", dev_split="")).warnings
    assert warning == "1 id in both train and test (x), for different recordings: give each an id of its own"


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
    with pytest.raises(ConfigError, match=r"--min_chars 5 and --max_chars 4"):
        ProcessConfig(tmp_path, tmp_path, min_chars=5, max_chars=4)
    with pytest.raises(ConfigError, match=r"--max_chars_per_second 0"):
        ProcessConfig(tmp_path, tmp_path, max_chars_per_second=0)
    with pytest.raises(ConfigError, match=r"--num_workers 0"):
        ProcessConfig(tmp_path, tmp_path, num_workers=0)
    assert ENCODER_SAMPLE_RATE == SAMPLE_RATE
    with pytest.raises(ConfigError, match="all empty"):
        process_corpus(ProcessConfig(tmp_path, tmp_path, train_split="", dev_split="", test_split=""))


def test_manifest_of_a_split_can_be_written_back(tmp_path: Path) -> None:
    write_pair(tmp_path / "corpus" / "a.wav")
    (report,) = process_corpus(config_for_folder(tmp_path)).splits
    before = report.manifest.read_bytes()
    write_manifest(report.manifest, read_manifest(report.manifest))
    assert report.manifest.read_bytes() == before
