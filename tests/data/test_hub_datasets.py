"""Hugging Face datasets become folders of recordings with a manifest, and an interrupted run goes on."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from asr_doge.data import hub_datasets, read_manifest
from asr_doge.data.configuration import DownloadConfig, ProcessConfig
from asr_doge.data.download import download
from asr_doge.data.processing import process_corpus
from asr_doge.errors import ConfigError, DataError
from tests.data.corpus_layouts import write_recording

SENTENCES = ["Grüße an alle", "Satz zwei", "Und noch einer"]


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    """A dataset of Parquet files, as most are on the hub."""
    datasets = pytest.importorskip("datasets", reason="needs asr-doge[datasets]")
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    features = datasets.Features(
        {
            "audio": datasets.Audio(),
            "sentence": datasets.Value("string"),
            "client_id": datasets.Value("int64"),
            "locale": datasets.Value("string"),
        }
    )
    for split, sentences in (("train", SENTENCES), ("test", SENTENCES[:1])):
        columns: dict[str, list[Any]] = {
            "audio": [{"bytes": flac(number), "path": f"{split}/{number}.flac"} for number in range(len(sentences))],
            "sentence": sentences,
            "client_id": list(range(len(sentences))),
            "locale": ["de"] * len(sentences),
        }
        (tmp_path / "german" / "data").mkdir(parents=True, exist_ok=True)
        path = tmp_path / "german" / "data" / f"{split}-00000-of-00001.parquet"
        parquet.write_table(arrow.table(columns, schema=features.arrow_schema), path)
    return str(tmp_path / "german")


def flac(seed: int) -> bytes:
    content = io.BytesIO()
    samples = np.random.default_rng(seed).normal(0, 0.01, 16_000).astype(np.float32)
    soundfile.write(content, samples, 16_000, format="FLAC")
    return content.getvalue()


def test_a_dataset_is_streamed_and_processed(tmp_path: Path, dataset: str) -> None:
    config = DownloadConfig([f"hub:{dataset}"], tmp_path / "data")
    results = list(download(config))
    assert {(result.split, result.outcome) for result in results} == {("train", "fetched"), ("test", "fetched")}
    assert [result.outcome for result in download(config)] == ["already there"] * 2
    assert (tmp_path / "data" / "german" / "audio" / "train" / "00000001.flac").read_bytes() == flac(1)
    process_corpus(ProcessConfig(tmp_path / "data" / "german", tmp_path / "out", "manifest", dev_split=""))
    train = read_manifest(tmp_path / "out" / "train_manifest.json")
    assert [(u.id, u.raw_text, u.speaker, u.language, u.duration) for u in train] == [
        (f"train-{number:08d}", sentence, str(number), "de", 1.0) for number, sentence in enumerate(SENTENCES)
    ]


def test_an_interrupted_run_goes_on(tmp_path: Path, dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DownloadConfig([f"hub:{dataset}"], tmp_path / "data", ["train"])
    written: list[str] = []
    write_audio = hub_datasets._write_audio

    def interrupted(audio: dict[str, Any], folder: Path, name: str) -> str:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(name)
        return write_audio(audio, folder, name)

    monkeypatch.setattr(hub_datasets, "_write_audio", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(download(config))
    folder = tmp_path / "data" / "german"
    assert not (folder / "train.jsonl").exists()
    with (folder / "train.jsonl.part").open("a") as part:
        part.write('{"id": "torn')
    written.clear()
    assert [result.outcome for result in download(config)] == ["fetched"]
    assert written == ["audio/train/00000002"]
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == SENTENCES


def test_a_folder_of_recordings_and_fewer_of_them(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="needs asr-doge[datasets]")
    for number in range(3):
        write_recording(tmp_path / "clips" / "train" / f"{number}.wav")
    lines = [f"{number}.wav,words {number}" for number in range(3)]
    (tmp_path / "clips" / "train" / "metadata.csv").write_text("\n".join(["file_name,said", *lines]) + "\n")
    config = DownloadConfig([f"hub:{tmp_path / 'clips'}"], tmp_path / "data", ["train"], max_utterances=2)
    (failed,) = download(config)
    assert "name the transcripts with --text_column, one of audio, said" in failed.error
    config.text_column = "said"
    assert [result.outcome for result in download(config)] == ["fetched"]
    lines = (tmp_path / "data" / "clips" / "train.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["words 0", "words 1"]


def test_a_finished_part_does_not_pass_for_the_whole(tmp_path: Path, dataset: str) -> None:
    """First some, then more, then all, and then fewer again."""

    def fetch(max_utterances: int | None) -> tuple[str, list[str]]:
        config = DownloadConfig([f"hub:{dataset}"], tmp_path / "data", ["train"], max_utterances=max_utterances)
        (result,) = download(config)
        lines = (tmp_path / "data" / "german" / "train.jsonl").read_text().splitlines()
        return result.outcome, [json.loads(line)["text"] for line in lines]

    assert fetch(1) == ("fetched", SENTENCES[:1])
    assert fetch(1) == ("already there", SENTENCES[:1])
    assert fetch(2) == ("fetched", SENTENCES[:2])
    assert fetch(1) == ("already there", SENTENCES[:2])
    assert fetch(None) == ("fetched", SENTENCES)
    for count in (None, 2, 5):
        assert fetch(count) == ("already there", SENTENCES)
    assert not list((tmp_path / "data" / "german").glob("*.part"))


def test_a_part_of_all_there_is_is_found_out_once(tmp_path: Path, dataset: str) -> None:
    """Whether there is more than was asked for, only asking for it can say."""
    config = DownloadConfig([f"hub:{dataset}"], tmp_path / "data", ["train"], max_utterances=len(SENTENCES))
    assert [result.outcome for result in download(config)] == ["fetched"]
    config.max_utterances = None
    assert [result.outcome for result in download(config)] == ["fetched"]
    assert [result.outcome for result in download(config)] == ["already there"]


def test_an_unknown_dataset_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="needs asr-doge[datasets]")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"hub:.*empty cannot be had: ") as caught:
        list(download(DownloadConfig([f"hub:{tmp_path / 'empty'}"], tmp_path / "data")))
    assert "\n" not in str(caught.value)


def test_without_the_extra_its_name_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'asr-doge\[datasets\]'"):
        list(download(DownloadConfig(["hub:acme/speech"], tmp_path / "data")))
