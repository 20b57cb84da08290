"""Lhotse's own cuts and Shar become manifests, and manifests become cuts; lhotse itself is the judge of both ways."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from asr_doge.data.configuration import ProcessConfig
from asr_doge.data.manifest import Utterance, read_manifest
from asr_doge.data.processing import process_corpus
from asr_doge.errors import ConfigError, DataError

lhotse = pytest.importorskip("lhotse")

RATE = 16_000


def noise(seconds: float, seed: int = 0, channels: int = 1) -> NDArray[np.float32]:
    """16-bit samples, `[samples]` or `[samples, channels]`, so that FLAC holds them exactly."""
    rng = np.random.default_rng(seed)
    shape = (round(seconds * RATE),) if channels == 1 else (round(seconds * RATE), channels)
    return (rng.integers(-8000, 8000, shape) / 32768).astype(np.float32)


def supervision(id_: str, duration: float, text: str | None, start: float = 0.0, **fields: Any) -> Any:
    return lhotse.SupervisionSegment(id=id_, recording_id="r", start=start, duration=duration, text=text, **fields)


def whole_cut(path: Path, text: str | None, **fields: Any) -> Any:
    recording = lhotse.Recording.from_file(path)
    cut = recording.to_cut()
    cut.id = f"cut-{path.stem}"
    cut.supervisions = [supervision(f"s-{path.stem}", recording.duration, text, **fields)]
    return cut


def process(folder: Path, output: Path, split: str = "train", **options: Any) -> list[Utterance]:
    report = process_corpus(
        ProcessConfig(folder, output, "lhotse", train_split=split, dev_split="", test_split="", **options)
    )
    return read_manifest(report.splits[0].manifest)


def dropped(output: Path) -> dict[str, str]:
    rows = [line.split("\t") for line in (output / "dropped.tsv").read_text().splitlines()[1:]]
    return {row[1]: row[2] for row in rows}


def test_cuts_of_whole_files_are_used_where_they_lie(tmp_path: Path) -> None:
    for name, seconds in (("a", 1.0), ("b", 1.2345)):
        soundfile.write(tmp_path / f"{name}.wav", noise(seconds), RATE)
    cuts = [
        whole_cut(tmp_path / "a.wav", "Hello, THERE", speaker="ann", language="en"),
        whole_cut(tmp_path / "b.wav", "again", speaker="bob"),
    ]
    (tmp_path / "corpus").mkdir()
    lhotse.CutSet.from_cuts(cuts).to_file(tmp_path / "corpus" / "some_cuts_train.jsonl.gz")
    first, second = process(tmp_path / "corpus", tmp_path / "out", language="de")
    assert (first.id, first.audio_path, first.text) == ("cut-a", tmp_path / "a.wav", "hello there")
    assert (first.raw_text, first.speaker, first.language) == ("Hello, THERE", "ann", "en")
    assert (second.speaker, second.language) == ("bob", "de")
    assert second.duration == pytest.approx(round(1.2345 * RATE) / RATE)
    assert not (tmp_path / "out" / "audio").exists()


def test_a_path_within_the_corpus_is_found_from_anywhere(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", noise(1.0), RATE)
    fields = whole_cut(tmp_path / "a.wav", "one").to_dict()
    fields["recording"]["sources"][0]["source"] = "a.wav"
    (tmp_path / "train.jsonl").write_text(json.dumps(fields) + "\n")
    (utterance,) = process(tmp_path, tmp_path / "out")
    assert utterance.audio_path == tmp_path / "a.wav"


def test_a_part_a_channel_and_a_mix_are_written_as_lhotse_loads_them(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", noise(5.0), RATE)
    soundfile.write(tmp_path / "two.flac", noise(1.5, seed=1, channels=2), RATE)
    long = whole_cut(tmp_path / "long.wav", None)
    part = long.truncate(offset=1.25, duration=1.5)
    part.id, part.supervisions = "part", [supervision("p", 0.7, "second", 0.8), supervision("q", 0.7, "first")]
    recording = lhotse.Recording.from_file(tmp_path / "two.flac")
    channel = lhotse.MonoCut("channel", 0.0, 1.5, 1, [supervision("c", 1.5, "right")], recording=recording)
    mixed = part.pad(duration=2.0)
    mixed.id = "mixed"
    cuts = [part, channel, mixed]
    with gzip.open(tmp_path / "cuts_train.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(cut.to_dict()) + "\n" for cut in cuts)
    utterances = process(tmp_path, tmp_path / "out")
    assert [(u.id, u.text) for u in utterances] == [
        ("part", "first second"),
        ("channel", "right"),
        ("mixed", "first second"),
    ]
    for utterance, cut in zip(utterances, cuts, strict=True):
        samples, rate = soundfile.read(utterance.audio_path, dtype="float32")
        assert rate == RATE
        np.testing.assert_array_equal(samples, cut.load_audio()[0])
    expected = noise(5.0)[round(1.25 * RATE) : round(2.75 * RATE)]
    np.testing.assert_array_equal(soundfile.read(utterances[0].audio_path, dtype="float32")[0], expected)


def test_shar_folders_are_read_and_their_audio_is_written_once(tmp_path: Path) -> None:
    texts = [f"number {number}" for number in range(7)]
    cuts = []
    for number, text in enumerate(texts):
        soundfile.write(tmp_path / f"{number}.wav", noise(0.6 + number / 10, number), RATE)
        cuts.append(whole_cut(tmp_path / f"{number}.wav", text))
    shar = tmp_path / "corpus" / "train"
    shar.mkdir(parents=True)
    lhotse.CutSet.from_cuts(cuts).to_shar(shar, fields={"recording": "flac"}, shard_size=3)
    for number in range(7):
        (tmp_path / f"{number}.wav").unlink()
    utterances = process(tmp_path / "corpus", tmp_path / "out")
    assert [utterance.text for utterance in utterances] == texts
    for number, utterance in enumerate(utterances):
        samples, _ = soundfile.read(utterance.audio_path, dtype="float32")
        np.testing.assert_array_equal(samples, noise(0.6 + number / 10, number))
    times = [utterance.audio_path.stat().st_mtime_ns for utterance in utterances]
    again = process(tmp_path / "corpus", tmp_path / "out")
    assert [utterance.audio_path.stat().st_mtime_ns for utterance in again] == times
    assert process(shar, tmp_path / "other", split=".")[6].text == "number 6"


def test_one_bad_cut_affects_only_itself(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", noise(1.0), RATE)
    soundfile.write(tmp_path / "long.wav", noise(3.0), RATE)
    (tmp_path / "garbage.wav").write_bytes(b"RIFF garbage")
    good, mute = whole_cut(tmp_path / "a.wav", "good"), whole_cut(tmp_path / "a.wav", None)
    mute.id = "mute"
    lost = whole_cut(tmp_path / "long.wav", "lost").truncate(offset=1.0, duration=1.0)
    lost.id = "lost"
    fields = lost.to_dict()
    fields["recording"]["sources"][0]["source"] = str(tmp_path / "garbage.wav")
    lines = [good.to_dict(), mute.to_dict(), fields, good.recording.to_dict()]
    content = [json.dumps(line).encode() for line in lines] + [b"{", b'{"type": "MonoCut", "id": "x"}', b'"\xff"']
    (tmp_path / "train.jsonl").write_bytes(b"\n".join(content))
    assert [utterance.id for utterance in process(tmp_path, tmp_path / "out")] == ["cut-a"]
    reasons = dropped(tmp_path / "out")
    file = tmp_path / "train.jsonl"
    assert reasons.pop("mute") == "no transcript"
    assert reasons.pop("lost") == "missing audio"
    assert reasons == {f"{file} line {number}": "malformed line" for number in (4, 5, 6, 7)}


def test_a_damaged_shar_and_an_unknown_split_are_one_line(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", noise(1.0), RATE)
    shar = tmp_path / "corpus" / "train"
    shar.mkdir(parents=True)
    lhotse.CutSet.from_cuts([whole_cut(tmp_path / "a.wav", "one")]).to_shar(shar, fields={"recording": "flac"})
    (tmp_path / "corpus" / "x_cuts_dev-clean.jsonl.gz").touch()
    with pytest.raises(DataError, match=r"has no split 'test': choose from dev-clean, train$"):
        process(tmp_path / "corpus", tmp_path / "out", split="test")
    (tar,) = shar.glob("recording.*.tar")
    tar.write_bytes(tar.read_bytes()[:700])
    with pytest.raises(DataError, match="cannot be read as lhotse Shar"):
        process(tmp_path / "corpus", tmp_path / "out")
    assert not (tmp_path / "out" / "train_manifest.json").exists()


@pytest.mark.parametrize("channels", [1, 2])
def test_manifests_become_cuts_that_lhotse_loads_and_that_come_back_equal(tmp_path: Path, channels: int) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    fields = []
    for number, seconds in enumerate((0.7, 1.1)):
        soundfile.write(corpus / f"{number}.wav", noise(seconds, number, channels), RATE)
        fields.append({"id": f"u/{number}", "audio_path": f"{number}.wav", "text": f"Größe {number}!", "speaker": "s"})
    (corpus / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in fields))
    config = ProcessConfig(
        corpus, tmp_path / "out", "manifest", dev_split="", test_split="", lhotse_cuts=True, language="de"
    )
    utterances = read_manifest(process_corpus(config).splits[0].manifest)
    cuts = lhotse.CutSet.from_file(tmp_path / "out" / "cuts_train.jsonl.gz").to_eager()
    lhotse.validate(cuts, read_data=True)
    for number, (cut, utterance) in enumerate(zip(cuts, utterances, strict=True)):
        (said,) = cut.supervisions
        assert (cut.id, said.text, said.speaker, said.language) == (utterance.id, utterance.text, "s", "de")
        assert said.custom["raw_text"] == f"Größe {number}!"
        assert cut.duration == pytest.approx(utterance.duration)
        expected = noise((0.7, 1.1)[number], number, channels).reshape(-1, channels).T
        np.testing.assert_allclose(cut.load_audio(), expected, atol=1e-6)
    back = process(tmp_path / "out", tmp_path / "back")
    assert [(u.id, u.text, u.raw_text, u.duration, u.speaker, u.language) for u in back] == [
        (u.id, u.text, u.raw_text, u.duration, u.speaker, u.language) for u in utterances
    ]
    same = process_corpus(config)
    assert same.warnings == ()


def test_cuts_are_not_replaced_by_those_made_from_them(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", noise(1.0), RATE)
    lhotse.CutSet.from_cuts([whole_cut(tmp_path / "a.wav", "one")]).to_file(tmp_path / "cuts_train.jsonl.gz")
    before = (tmp_path / "cuts_train.jsonl.gz").read_bytes()
    with pytest.raises(DataError, match="would overwrite its own source"):
        process(tmp_path, tmp_path, lhotse_cuts=True)
    assert (tmp_path / "cuts_train.jsonl.gz").read_bytes() == before


def test_without_lhotse_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lhotse", None)
    (tmp_path / "train.jsonl.gz").touch()
    with pytest.raises(ConfigError, match=r"pip install 'asr-doge\[lhotse\]'"):
        process(tmp_path, tmp_path / "out")
    soundfile.write(tmp_path / "a.wav", noise(1.0), RATE)
    (tmp_path / "a.txt").write_text("one")
    config = ProcessConfig(tmp_path, tmp_path / "out", "folder", "all", "", "", lhotse_cuts=True)
    with pytest.raises(ConfigError, match=r"pip install 'asr-doge\[lhotse\]'"):
        process_corpus(config)
    assert not (tmp_path / "out").exists()
