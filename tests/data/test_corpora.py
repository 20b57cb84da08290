"""Each layout is read as its authors lay it out, and a wrong split names the right ones."""

import csv
import io
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_doge.data.corpora import CORPORA, Rejected, SourceUtterance, find_corpus
from asr_doge.errors import ConfigError, DataError
from tests.data.corpus_layouts import write_fsdd, write_librispeech, write_recording


def ids(dataset: str, folder: Path, split: str) -> list[str]:
    return [utterance.id for utterance in find_corpus(dataset).read(folder, split)]


def listed(dataset: str, folder: Path, split: str) -> list[SourceUtterance]:
    return [u for u in find_corpus(dataset).read(folder, split) if isinstance(u, SourceUtterance)]


def faults(dataset: str, folder: Path, split: str) -> dict[str, tuple[str, str | None]]:
    return {u.id: (u.reason, u.detail) for u in find_corpus(dataset).read(folder, split) if isinstance(u, Rejected)}


def test_librispeech_with_and_without_its_outer_folder(tmp_path: Path) -> None:
    write_librispeech(tmp_path)
    train = listed("librispeech", tmp_path, "train-clean-100")
    assert train == listed("mini_librispeech", tmp_path / "LibriSpeech", "train-clean-100")
    assert [(u.id, u.raw_text, u.speaker, u.language) for u in train] == [
        ("19-198-0000", "NORTHANGER ABBEY", "19", "en"),
        ("19-198-0001", "IT'S A SMALL-TOWN STORY", "19", "en"),
        ("26-198-0000", "HELLO", "26", "en"),
    ]
    assert all(u.audio_path.is_file() for u in train)


def test_librispeech_lines_that_miss_or_are_garbled(tmp_path: Path) -> None:
    chapter = write_librispeech(tmp_path) / "LibriSpeech" / "dev-clean" / "84" / "198"
    for number in (8, 9):
        write_recording(chapter / f"84-198-000{number}.flac")
    with (chapter / "84-198.trans.txt").open("ab") as transcripts:
        transcripts.write(b"84-198-0008 CAF\xc9\n84-198-0007 SILENCE\n")
    assert [u.id for u in listed("librispeech", tmp_path, "dev-clean")] == ["84-198-0000", "84-198-0007"]
    found = faults("librispeech", tmp_path, "dev-clean")
    assert found["84-198-0009"] == (
        "no transcript",
        f"{chapter / '84-198-0009.flac'}: 84-198.trans.txt does not list it",
    )
    assert "the line of 84-198-0008 is not UTF-8" in str(found["84-198-0008"][1])


def test_ljspeech_by_chapter(tmp_path: Path) -> None:
    root = tmp_path / "LJSpeech-1.1"
    for id_ in ("LJ001-0001", "LJ049-0001", "LJ050-0001", "LJ050-0002"):
        write_recording(root / "wavs" / f"{id_}.wav")
    lines = ["LJ001-0001|In 1465|In fourteen sixty-five", 'LJ049-0001|Say "no"|Say "no"', "LJ050-0001|A|A"]
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")
    (train,) = listed("ljspeech", tmp_path, "train")
    assert (train.raw_text, train.speaker, train.language) == ("In fourteen sixty-five", "LJ", "en")
    assert [u.raw_text for u in listed("ljspeech", tmp_path, "dev")] == ['Say "no"']
    assert [u.id for u in listed("ljspeech", root, "test")] == ["LJ050-0001"]
    assert faults("ljspeech", root, "all").keys() == {"LJ050-0002"}


def test_speechocean762_holds_out_speakers(tmp_path: Path) -> None:
    root = tmp_path / "speechocean762"
    for split, speakers in (("train", range(20)), ("test", range(20, 22))):
        recordings = [(f"{speaker:04d}1", f"{speaker:04d}") for speaker in speakers]
        (root / split).mkdir(parents=True)
        for name, value in (("wav.scp", "WAVE/{}.WAV"), ("text", "WE CALL IT BEAR"), ("utt2spk", "{}")):
            lines = [f"{id_}\t{value.format(speaker)}\n" for id_, speaker in recordings]
            (root / split / name).write_text("".join(lines))
        for _, speaker in recordings:
            write_recording(root / "WAVE" / f"{speaker}.WAV")
    dev = listed("speechocean762", tmp_path, "dev")
    assert [(u.id, u.speaker, u.language) for u in dev] == [("00091", "0009", "en"), ("00191", "0019", "en")]
    assert all(u.audio_path.is_file() for u in dev)
    assert len(ids("speechocean762", tmp_path, "train")) == 20
    assert not set(ids("speechocean762", root, "train-without-dev")) & {u.id for u in dev}
    assert len(ids("speechocean762", root, "test")) == 2


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
    (first, *_) = listed("fsdd", tmp_path / "recordings", "test")
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
    (tmp_path / "test" / "e.txt").write_text("nobody said this")
    assert [(u.id, u.raw_text) for u in listed("folder", tmp_path, "train")] == [
        ("train/b.v2", "Two"),
        ("train/deep/a", "One"),
    ]
    assert {id_: reason for id_, (reason, _) in faults("folder", tmp_path, "test").items()} == {
        "test/c": "no transcript",
        "test/d": "no transcript",
        "test/e": "missing audio",
    }
    assert "d.txt: not UTF-8" in str(faults("folder", tmp_path, "test")["test/d"][1])
    assert len(ids("folder", tmp_path, "all")) == len(ids("folder", tmp_path, ".")) == 6


@pytest.mark.parametrize("name", ["train.jsonl", "train.json", "train_manifest.json"])
def test_manifests_by_any_of_their_names(tmp_path: Path, name: str) -> None:
    line = {"audio_filepath": "clips/x.wav", "text": "HELLO", "speaker": "s1", "language": "de"}
    (tmp_path / name).write_bytes(json.dumps(line).encode() + b'\n{"audio_path": "y.wav", "text": "caf\xe9"}\n{\n')
    (utterance,) = listed("manifest", tmp_path, "train")
    assert (utterance.id, utterance.raw_text) == ("clips/x", "HELLO")
    assert (utterance.speaker, utterance.language) == ("s1", "de")
    assert utterance.audio_path == tmp_path / "clips" / "x.wav"
    assert faults("manifest", tmp_path, "train") == {
        f"{name}:2": ("malformed line", f"{tmp_path / name} line 2: not UTF-8; save the file as UTF-8"),
        f"{name}:3": ("malformed line", f"{tmp_path / name} line 3: not JSON; write one object a line"),
    }


def test_tables_with_columns_of_many_names(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(
        '\ufeffPath,Sentence,client_id,locale\nä b.wav,"One, two ""three""",ann,de\n,no recording,,\n'.encode()
        + b"c.wav,,bob,en\nd.wav,caf\xe9,bob,en\ne.wav\n"
    )
    (utterance,) = listed("table", tmp_path, "train")
    assert utterance == SourceUtterance("ä b", tmp_path / "ä b.wav", 'One, two "three"', "ann", "de")
    found = faults("table", tmp_path, "train")
    assert [reason for reason, _ in found.values()] == [
        "missing audio",
        "no transcript",
        "malformed line",
        "no transcript",
    ]
    assert f"{tmp_path / 'train.csv'} line 5: not UTF-8; save the file as UTF-8" in [d for _, d in found.values()]
    (tmp_path / "dev.tsv").write_text('id\taudio\ttext\n7\tx.wav\t"quoted"\n')
    assert [(u.id, u.raw_text) for u in listed("table", tmp_path, "dev")] == [("7", '"quoted"')]
    (tmp_path / "test.csv").write_text("path,words\nx.wav,hello\n")
    with pytest.raises(DataError, match=r"test.csv has no column of transcripts: call it one of raw_text, text,"):
        ids("table", tmp_path, "test")


WORDS = ["hello", "it's", "so 5", "\u4f60\u597d", '"', '""', '"quoted"', 'a "b" c', "'", "a|b", "a\u2028b"]
cells = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join)


@settings(max_examples=50)
@given(st.lists(cells, min_size=1, max_size=8))
def test_a_tsv_loses_no_row_to_a_quotation_mark(texts: list[str]) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        rows = [f"s{number}/a.wav\t{text}" for number, text in enumerate(texts)]
        (folder / "train.tsv").write_text("\n".join(["path\ttext", *rows]), encoding="utf-8")
        expected = [(f"s{number}/a", text) for number, text in enumerate(texts)]
        assert [(u.id, u.raw_text) for u in listed("table", folder, "train")] == expected
        (folder / "dev.tsv").write_text("\n".join(["path\tsentence", *rows]), encoding="utf-8")
        assert [(u.id, u.raw_text) for u in listed("common_voice", folder, "dev")] == expected


@settings(max_examples=50)
@given(st.lists(cells | cells.map(lambda text: f"{text}\n{text}"), min_size=1, max_size=8), st.sets(st.integers(0, 7)))
def test_a_csv_names_every_row_that_it_does_not_give(texts: list[str], unbalanced: set[int]) -> None:
    """As Python's csv module writes it, but that some rows have lost their last quotation mark."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        lines, expected, lost = [], [], 0
        for number, text in enumerate(texts):
            row = io.StringIO()
            csv.writer(row, quoting=csv.QUOTE_ALL, lineterminator="\n").writerow([f"s{number}/a.wav", text])
            line = row.getvalue()[:-1]
            if number in unbalanced:
                line = line[:-1]
            if number in unbalanced or "\n" in text:
                lost += 1
            else:
                expected.append((f"s{number}/a", text))
            lines.append(line)
        (folder / "train.csv").write_text("\n".join(["path,text", *lines]), encoding="utf-8")
        assert [(u.id, u.raw_text) for u in listed("table", folder, "train")] == expected
        found = faults("table", folder, "train")
        assert len(found) >= lost
        assert all(detail is not None and "train.csv line " in detail for _, detail in found.values())


def test_a_quotation_mark_that_nothing_closes_is_named_with_its_line(tmp_path: Path) -> None:
    rows = ["path,text", 'a.wav,"one', "b.wav,two", 'c.wav,"three"', "d.wav,four, five", "e.wav,six,", "f.wav,seven"]
    (tmp_path / "train.csv").write_text("\n".join(rows))
    assert [(u.id, u.raw_text) for u in listed("table", tmp_path, "train")] == [
        ("b", "two"),
        ("c", "three"),
        ("e", "six"),
        ("f", "seven"),
    ]
    assert [detail for _, detail in faults("table", tmp_path, "train").values()] == [
        f"{tmp_path / 'train.csv'} line 2: a quotation mark is not closed on its line; close or double it, and write"
        " each row on a line of its own",
        f"{tmp_path / 'train.csv'} line 5: it has 3 cells, and the header 2; quote or remove what parts them",
    ]
    (tmp_path / "dev.csv").write_text('path,"text\na.wav,one\n')
    with pytest.raises(DataError, match=r"dev.csv line 1: a quotation mark is not closed"):
        ids("table", tmp_path, "dev")


@pytest.mark.parametrize(
    ("audio", "expected"),
    [
        ("s1/001.wav", "s1/001"),
        ("./s1/../s1/001.wav", "s1/001"),
        ("{folder}/s1/001.wav", "s1/001"),
        ("../audio/001.wav", "../audio/001"),
        ("/far/s1/001.wav", "/far/s1/001"),
        ("s1/001.v2.wav", "s1/001.v2"),
        ("s1/001", "s1/001"),
        ("..wav", "..wav"),
    ],
)
def test_a_default_id_is_the_path_from_the_table(tmp_path: Path, audio: str, expected: str) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    audio = audio.format(folder=folder)
    (folder / "train.tsv").write_text(f"path\ttext\n{audio}\thello\n")
    (folder / "dev.jsonl").write_text(json.dumps({"audio_path": audio, "text": "hello"}))
    assert ids("table", folder, "train") == ids("manifest", folder, "dev") == [expected]


def test_common_voice(tmp_path: Path) -> None:
    rows = ['s1\tcommon_voice_hi_1.mp3\t\u0928\u092e "\u0938\thi', "s2\told_release\tzwei\tde"]
    (tmp_path / "dev.tsv").write_text("\n".join(["client_id\tpath\tsentence\tlocale", *rows]), encoding="utf-8")
    assert listed("common_voice", tmp_path, "dev") == [
        SourceUtterance(
            "common_voice_hi_1", tmp_path / "clips" / "common_voice_hi_1.mp3", '\u0928\u092e "\u0938', "s1", "hi"
        ),
        SourceUtterance("old_release", tmp_path / "clips" / "old_release.mp3", "zwei", "s2", "de"),
    ]


def test_kaldi_directories(tmp_path: Path) -> None:
    data = tmp_path / "train"
    data.mkdir()
    scp = {
        "u1": "wav/a b.wav",
        "u2": "sox x.wav -t wav - |",
        "u3": "/far/c.wav",
        "u4": "d.wav",
        "u6": "e.wav",
        "u7": "f.wav",
    }
    (data / "wav.scp").write_text("".join(f"{id_} {path}\n" for id_, path in scp.items()))
    (data / "text").write_bytes(b"u1 hello  world \nu2 two\nu3 drei\nu5 five\nu6 caf\xe9\nu7 one\n\nu7 two\n")
    (data / "utt2spk").write_text("u1 ann\nu3 bob\n")
    (data / "utt2lang").write_text("u3 de\n")
    assert listed("kaldi", tmp_path, "train") == [
        SourceUtterance("u1", tmp_path / "wav" / "a b.wav", "hello  world", "ann"),
        SourceUtterance("u3", Path("/far/c.wav"), "drei", "bob", "de"),
    ]
    assert {id_: reason for id_, (reason, _) in faults("kaldi", tmp_path, "train").items()} == {
        "u2": "missing audio",
        "u4": "no transcript",
        "u5": "missing audio",
        "u6": "malformed line",
        "u7": "id used twice",
    }
    (data / "segments").touch()
    with pytest.raises(DataError, match="segments cuts long recordings"):
        ids("kaldi", tmp_path, "train")


def test_unknown_split_names_those_that_exist(tmp_path: Path) -> None:
    write_librispeech(tmp_path / "libri")
    write_fsdd(tmp_path / "fsdd", takes=1)
    write_recording(tmp_path / "folder" / "eval" / "a.wav")
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "heldout_manifest.json").touch()
    (tmp_path / "tables" / "a").mkdir(parents=True)
    (tmp_path / "tables" / "eval.tsv").touch()
    (tmp_path / "tables" / "a" / "wav.scp").touch()
    cases = {
        "table": ("tables", "eval"),
        "common_voice": ("tables", "eval"),
        "kaldi": ("tables", "a"),
        "librispeech": ("libri", "dev-clean, test-clean, train-clean-100"),
        "fsdd": ("fsdd", "train, dev, test, all, george, lucas, train-without-dev"),
        "folder": ("folder", "all, eval"),
        "manifest": ("manifests", "heldout"),
    }
    for dataset, (folder, splits) in cases.items():
        with pytest.raises(DataError, match=f"no split 'trian': choose from {splits}"):
            ids(dataset, tmp_path / folder, "trian")
    with pytest.raises(DataError, match="no split 'train-without-bob'"):
        ids("fsdd", tmp_path / "fsdd", "train-without-bob")


def test_an_empty_split_is_said_to_be_empty(tmp_path: Path) -> None:
    for folder in ("folder/train", "kaldi/train", "common_voice/clips", "tables", "manifests"):
        (tmp_path / folder).mkdir(parents=True)
    for file, header in {
        "kaldi/train/wav.scp": "",
        "kaldi/train/text": "",
        "common_voice/train.tsv": "client_id\tpath\tsentence\n",
        "tables/train.csv": "path,text\n",
        "manifests/train.jsonl": "\n",
    }.items():
        (tmp_path / file).write_text(header)
    for dataset, folder in [("table", "tables"), ("manifest", "manifests"), *((n, n) for n in ("folder", "kaldi"))]:
        with pytest.raises(DataError, match=f"split 'train' of .*{folder} is empty: expected .*; fill it"):
            ids(dataset, tmp_path / folder, "train")
    with pytest.raises(DataError, match=r"split 'train' of .* is empty"):
        ids("common_voice", tmp_path / "common_voice", "train")


def test_wrong_folder_or_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere is no folder: give --data_dir"):
        ids("fsdd", tmp_path / "nowhere", "train")
    with pytest.raises(DataError, match=r"expected DIGIT_SPEAKER_TAKE.wav.*--dataset"):
        ids("fsdd", tmp_path, "train")
    with pytest.raises(ConfigError, match="--dataset libri is unknown: choose from librispeech, mini_"):
        find_corpus("libri")
