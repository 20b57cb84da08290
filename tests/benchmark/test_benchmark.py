"""The numbers are those of the texts, every sample counts, and the report can be read by others."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jiwer
import pytest
from safetensors.torch import load_file, save_file

from asr_doge.benchmark import ASRDogeBenchmark, BenchmarkConfig
from asr_doge.benchmark.benchmark import merge_reports
from asr_doge.benchmark.report import read_report, report_document
from asr_doge.benchmark.stages import STAGES
from asr_doge.cli.benchmark import _show
from asr_doge.data import Utterance, read_manifest, write_manifest
from asr_doge.data.manifest import sample_utterances
from asr_doge.errors import CheckpointError, ConfigError, DataError
from asr_doge.inference.transcription import SourceWithOptions, Transcriber
from asr_doge.models import assemble_model
from asr_doge.text.normalization import normalize_training_text
from tests import speech


@pytest.fixture(scope="module")
def checkpoint(checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speech.brief_checkpoint(checkpoint_folder, tmp_path_factory.mktemp("benchmark") / "checkpoint")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return speech.write_corpus(tmp_path / "processed", train=1, dev=1, test=6)


def benchmark_of(checkpoint: Path, corpus: Path, **options: Any) -> ASRDogeBenchmark:
    defaults: dict[str, Any] = {
        "num_speed_runs": 1,
        "num_warmup_runs": 0,
        "batch_sizes": [],
        "embed_audio": False,
        "device": "cpu",
        "decoder": "greedy",  # as many passes as tokens
        "guard_silence": False,  # nobody speaks in these clips
        "output_dir": str(corpus.parent / "report"),
    }
    return ASRDogeBenchmark(BenchmarkConfig(str(checkpoint), str(corpus), **defaults | options))


def test_samples_may_be_what_json_makes_of_manifest_lines(
    checkpoint: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published interface; paths are from the manifest's folder, or from where the user is."""
    lines = [json.loads(line) for line in (corpus / "test_manifest.json").read_text().splitlines()]
    benchmark = benchmark_of(checkpoint, corpus)
    expected = benchmark.run_full_benchmark()
    published = [{"id": line["id"], "audio_path": line["audio_path"], "text": line["text"]} for line in lines]
    result = benchmark.run_full_benchmark(published)
    assert [sample.hypothesis for sample in result.samples] == [sample.hypothesis for sample in expected.samples]
    assert [sample.duration for sample in result.samples] == [sample.duration for sample in expected.samples]
    assert result.accuracy == expected.accuracy
    monkeypatch.chdir(corpus)
    elsewhere = benchmark_of(checkpoint, tmp_path / "no_data_here")
    mixed = elsewhere.transcribe_samples([published[0], benchmark.load_samples()[1]])
    assert [sample.hypothesis for sample in mixed] == [sample.hypothesis for sample in result.samples[:2]]
    for wrong, named in (
        ({"id": "a", "text": "b"}, 'sample 1 of 2: no "audio_path"; name the recording'),
        ("a.wav", "sample 1 of 2: a str; give an Utterance, or the fields of a manifest's line"),
        (published[0], f"samples 0 and 1 have the same id '{published[0]['id']}'"),
    ):
        with pytest.raises(DataError, match=re.escape(named)):
            benchmark.run_full_benchmark([published[0], wrong])  # type: ignore[list-item]


def test_the_first_samples_in_file_order(checkpoint: Path, corpus: Path) -> None:
    ids = [json.loads(line)["id"] for line in (corpus / "test_manifest.json").read_text().splitlines()]
    first = benchmark_of(checkpoint, corpus, max_samples=3, sample_choice="first")
    assert [sample.id for sample in first.load_samples()] == ids[:3]
    spread = benchmark_of(checkpoint, corpus, max_samples=3)
    by_digest = sorted(ids, key=lambda id_: hashlib.sha256(id_.encode()).hexdigest())[:3]
    assert [sample.id for sample in spread.load_samples()] == [id_ for id_ in ids if id_ in by_digest]
    result = first.run_full_benchmark()
    assert result.which_samples == "the first 3 of the manifest"
    assert result.reading.endswith("; guards off")
    assert result.reading.startswith("recordings whole; cut at pauses where they are longer than ")
    cut = benchmark_of(checkpoint, corpus, max_samples=1, cut_at_pauses=True, guard_loops=True).run_full_benchmark()
    assert cut.reading == "recordings cut at pauses; guards loops"
    assert read_report(cut.report_path).reading == cut.reading


def with_texts(samples: Sequence[Utterance], texts: Sequence[str]) -> list[Utterance]:
    return [replace(sample, raw_text=text, text=text) for sample, text in zip(samples, texts, strict=True)]


@pytest.fixture
def ready(checkpoint: Path, corpus: Path) -> tuple[ASRDogeBenchmark, list[Utterance], list[str]]:
    """A benchmark, its samples, and what the model hears in them."""
    benchmark = benchmark_of(checkpoint, corpus)
    samples = benchmark.load_samples()
    heard = [result.hypothesis for result in benchmark.transcribe_samples(samples)]
    assert len(set(heard)) > 1
    assert all(heard)
    return benchmark, samples, heard


def test_the_published_names(checkpoint: Path, corpus: Path) -> None:
    benchmark = benchmark_of(checkpoint, corpus)
    benchmark.load_models()
    samples = read_manifest(corpus / "test_manifest.json")
    accuracy = benchmark.run_full_benchmark(samples).accuracy
    assert accuracy.num_samples == 6
    for rate in (accuracy.wer, accuracy.cer, accuracy.wer_std, accuracy.cer_std, accuracy.perfect_match_rate):
        assert isinstance(rate, float)
    speed = benchmark.benchmark_speed(str(samples[0].audio_path))
    assert {"total_latency_ms", "real_time_factor", "tokens_per_second"} <= speed.keys()
    assert all(value > 0 for value in speed.values())
    stages = sum(speed[f"{stage}_ms"] for stage in (*STAGES, "other"))
    assert stages == pytest.approx(speed["total_latency_ms"])
    assert speed["audio_ms"] < speed["first_token_ms"] < speed["total_latency_ms"]
    assert speed["language_model_passes"] == 12  # as many tokens as the checkpoint writes
    assert speed["real_time_factor"] == pytest.approx(speed["total_latency_ms"] / 1000 / speed["audio_duration"])
    assert speed["audio_duration"] == pytest.approx(samples[0].duration)


def test_known_texts_have_known_scores(ready: tuple[ASRDogeBenchmark, list[Utterance], list[str]]) -> None:
    benchmark, samples, heard = ready
    perfect = benchmark.run_full_benchmark(with_texts(samples, [text.upper() + "!" for text in heard])).accuracy
    assert (perfect.wer, perfect.cer, perfect.wer_std, perfect.perfect_match_rate) == (0, 0, 0, 1)
    # One more word in half of the references: that many words deleted.
    texts = [f"{text} extra" if number % 2 else text for number, text in enumerate(heard)]
    half = benchmark.run_full_benchmark(with_texts(samples, texts)).accuracy
    assert half.perfect_match_rate == 0.5
    assert half.wer == pytest.approx(3 / sum(len(text.split()) for text in texts))
    assert half.cer == pytest.approx(jiwer.cer(texts, heard))


def test_speakers_are_scored_apart(ready: tuple[ASRDogeBenchmark, list[Utterance], list[str]]) -> None:
    benchmark, samples, heard = ready
    texts = [text if sample.speaker == "ann" else f"{text} extra" for sample, text in zip(samples, heard, strict=True)]
    by_speaker = benchmark.run_full_benchmark(with_texts(samples, texts)).accuracy_by_speaker
    assert by_speaker.keys() == {"ann", "bob"}
    assert by_speaker["ann"].wer == 0
    assert by_speaker["bob"].wer == pytest.approx(3 / sum(len(text.split()) for text in texts[1::2]))
    assert by_speaker["ann"].num_samples == by_speaker["bob"].num_samples == 3
    nameless = [replace(sample, speaker=None) for sample in samples]
    assert benchmark.run_full_benchmark(nameless).accuracy_by_speaker == {}


def test_what_cannot_be_read_counts_as_empty(ready: tuple[ASRDogeBenchmark, list[Utterance], list[str]]) -> None:
    benchmark, samples, heard = ready
    samples = with_texts(samples, heard)
    samples[2].audio_path.write_bytes(b"RIFF, but no sound")
    samples[4].audio_path.unlink()
    result = benchmark.run_full_benchmark(samples)
    assert result.accuracy.num_samples == 6
    assert result.accuracy.perfect_match_rate == pytest.approx(4 / 6)
    lost = sum(len(heard[number].split()) for number in (2, 4))
    assert result.accuracy.wer == pytest.approx(lost / sum(len(text.split()) for text in heard))
    errors = [sample.error for sample in result.samples]
    assert [error is not None for error in errors] == [False, False, True, False, True, False]
    assert str(samples[2].audio_path) in str(errors[2])
    assert result.samples[2].hypothesis == ""


def test_what_is_scored_in_part_is_told(
    ready: tuple[ASRDogeBenchmark, list[Utterance], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark, samples, _ = ready
    whole = samples[1].audio_path.read_bytes()
    samples[1].audio_path.write_bytes(whole[: len(whole) * 2 // 3])
    result = benchmark.run_full_benchmark(samples[:2])
    assert [sample.error for sample in result.samples] == [None, None]
    assert result.samples[0].incomplete is None
    assert f"{samples[1].audio_path} is truncated or corrupt" in str(result.samples[1].incomplete)
    assert read_report(result.report_path).samples == result.samples
    assert "1 recording cut or damaged" in result.page_path.read_text(encoding="utf-8")
    _show(result)
    assert "scored by what is there of it" in capsys.readouterr().out


def test_nothing_to_measure_is_an_error(checkpoint: Path, corpus: Path) -> None:
    benchmark = benchmark_of(checkpoint, corpus)
    for path in (corpus / "audio").glob("test-*.wav"):
        path.write_bytes(b"no sound")
    with pytest.raises(DataError, match=r"none of the 6 samples can be read; the first: .*test-0.wav"):
        benchmark.run_full_benchmark()
    with pytest.raises(DataError, match="no samples"):
        benchmark.run_full_benchmark([])
    assert not (corpus.parent / "report").exists()
    parts = [benchmark.for_shard(f"{part}/2").run_full_benchmark().report_path for part in (1, 2)]
    with pytest.raises(DataError, match=r"none of the 6 samples can be read; the first: .*test-0.wav"):
        merge_reports(parts, corpus / "joined")


@pytest.mark.parametrize(("max_samples", "measured"), [(0, 6), (2, 2), (100, 6)])
def test_samples_are_a_spread_of_the_manifest(checkpoint: Path, corpus: Path, max_samples: int, measured: int) -> None:
    benchmark = benchmark_of(checkpoint, corpus, max_samples=max_samples)
    samples = benchmark.load_samples()
    assert samples == sample_utterances(read_manifest(corpus / "test_manifest.json"), measured)
    assert samples != read_manifest(corpus / "test_manifest.json")[:measured] or measured == 6
    result = benchmark.run_full_benchmark()
    assert [sample.id for sample in result.samples] == [sample.id for sample in samples]
    rule = json.loads(result.report_path.read_text())["which_samples"]
    assert rule == (f"at most {max_samples}, those whose ids have the smallest SHA-256" if max_samples else "all")
    given = benchmark.run_full_benchmark(samples[:1])
    assert json.loads(given.report_path.read_text())["which_samples"] == "chosen by the caller"


def test_no_report_replaces_another(checkpoint: Path, corpus: Path) -> None:
    benchmark = benchmark_of(checkpoint, corpus)
    samples = benchmark.load_samples()[:1]
    results = [benchmark.run_full_benchmark(samples) for _ in range(2)]
    paths = [path for result in results for path in (result.report_path, result.page_path)]
    assert sorted((corpus.parent / "report").iterdir()) == sorted(set(paths)) == sorted(paths)


def test_another_manifest_can_be_named(checkpoint: Path, corpus: Path) -> None:
    manifest = str(corpus / "train_manifest.json")
    assert [s.id for s in benchmark_of(checkpoint, corpus, test_manifest=manifest).load_samples()] == ["train-0"]
    with pytest.raises(DataError, match=r"nothing.json does not exist"):
        benchmark_of(checkpoint, corpus, test_manifest=str(corpus / "nothing.json")).load_samples()


def test_texts_go_through_the_published_rule(ready: tuple[ASRDogeBenchmark, list[Utterance], list[str]]) -> None:
    benchmark, samples, _ = ready
    for sample, result in zip(samples, benchmark.run_full_benchmark(samples).samples, strict=True):
        assert result.reference == normalize_training_text(sample.raw_text) == sample.text
        assert result.hypothesis == normalize_training_text(result.hypothesis)


def test_the_report_says_all_of_it_and_is_read_back(checkpoint: Path, corpus: Path) -> None:
    write_manifest(
        corpus / "test_manifest.json",
        [replace(sample, raw_text="naïve “café”") for sample in read_manifest(corpus / "test_manifest.json")],
    )
    result = benchmark_of(checkpoint, corpus, num_speed_runs=2, batch_sizes=[1, 3]).run_full_benchmark()
    assert sorted((corpus.parent / "report").iterdir()) == sorted([result.report_path, result.page_path])
    text = result.report_path.read_text(encoding="utf-8")
    report = json.loads(text)
    assert report["accuracy"] == json.loads(json.dumps(asdict(result.accuracy)))
    assert report["accuracy_by_speaker"].keys() == {"ann", "bob"}
    assert report["accuracy_by_rule"]["clean"] == report["accuracy"]
    assert [sample["id"] for sample in report["samples"]] == [sample.id for sample in result.samples]
    assert report["config"]["checkpoint_dir"] == report["name"] == str(checkpoint)
    assert (report["speed"]["num_clips"], report["speed"]["num_runs"]) == (5, 2)
    assert [batch["batch_size"] for batch in report["speed"]["batches"]] == [1, 3]
    assert all(batch["num_clips"] == 6 and batch["rtfx"] > 0 for batch in report["speed"]["batches"])
    assert {"device", "torch", "transformers", "asr-doge", "python"} <= report["machine"].keys()
    assert report["date"].endswith("+00:00")
    assert "naïve café" in text  # readable as it stands
    counts = report["parameters"]
    assert counts["encoder"] + counts["adapter"] + counts["language_model"] == counts["total"]
    assert counts["trainable"] == counts["adapter"]
    assert counts["trainable_share"] == pytest.approx(counts["adapter"] / counts["total"])
    memory = report["memory"]
    assert memory["weights_bytes"] < memory["peak_rss_bytes"]
    for stage in memory["stages"].values():
        assert memory["weights_bytes"] < stage["peak_rss_bytes"] <= memory["peak_rss_bytes"]
    again = read_report(result.report_path)
    assert again == result
    assert json.loads(json.dumps(report_document(again))) == report


def test_every_field_of_the_report_is_documented(
    ready: tuple[ASRDogeBenchmark, list[Utterance], list[str]],
) -> None:
    documentation = (Path(__file__).parents[2] / "docs" / "benchmark.md").read_text(encoding="utf-8")
    benchmark, samples, _ = ready
    report = json.loads(benchmark.run_full_benchmark(samples[:1]).report_path.read_text())
    fields = [
        *report,
        *report["accuracy"],
        *report["speed"],
        *report["memory"],
        *report["samples"][0],
        *report["machine"],
    ]
    missing = [field for field in fields if f"`{field}`" not in documentation]
    assert not missing


def interrupted_after(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let every transcriber be stopped by Ctrl-C after some recordings."""
    whole = Transcriber.transcribe_each

    def some(self: Transcriber, sources: Iterable[Any]) -> Iterator[Any]:
        for number, result in enumerate(whole(self, sources)):
            if number == count:
                raise KeyboardInterrupt
            yield result

    monkeypatch.setattr(Transcriber, "transcribe_each", some)


def test_an_interrupted_benchmark_goes_on(
    checkpoint: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark = benchmark_of(checkpoint, corpus)
    samples = benchmark.load_samples()
    heard = [result.hypothesis for result in benchmark.transcribe_samples(samples)]
    folder = corpus.parent / "report"
    for unfinished in folder.iterdir():
        unfinished.unlink()

    with monkeypatch.context() as patch:
        interrupted_after(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            benchmark.run_full_benchmark(samples)
    (unfinished,) = folder.iterdir()
    with unfinished.open("a") as file:  # as if the power had gone in the middle of a line
        file.write('\n{"id": "test-4", "text')
    samples[0].audio_path.write_bytes(samples[1].audio_path.read_bytes())  # another recording since

    asked: list[str] = []
    whole = Transcriber.transcribe_each

    def noting(self: Transcriber, sources: Iterable[Any]) -> Iterator[Any]:
        sources = list(sources)
        # What is timed afterwards names no language.
        asked.extend(Path(str(spoken.source)).stem for spoken in sources if isinstance(spoken, SourceWithOptions))
        return whole(self, sources)

    monkeypatch.setattr(Transcriber, "transcribe_each", noting)
    result = benchmark_of(checkpoint, corpus).run_full_benchmark(samples)
    assert asked[:3] == ["test-0", "test-4", "test-5"]
    assert "3 of 6 are finished already" in capsys.readouterr().err
    assert [sample.hypothesis for sample in result.samples] == [heard[1], *heard[1:]]
    assert sorted(folder.iterdir()) == sorted([result.report_path, result.page_path])


def test_another_checkpoint_starts_anew(checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    other = speech.brief_checkpoint(checkpoint, tmp_path / "other", tokens=5)
    first = benchmark_of(checkpoint, corpus).transcribe_samples(benchmark_of(checkpoint, corpus).load_samples())
    second = benchmark_of(other, corpus).transcribe_samples(benchmark_of(other, corpus).load_samples())
    assert all(len(short.raw_hypothesis) < len(long.raw_hypothesis) for short, long in zip(second, first, strict=True))


def test_hotwords_count_by_their_words_and_not_by_their_file(
    checkpoint: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = corpus.parent / "words.txt"

    def goes_on(text: str) -> bool:
        words.write_text(text)
        benchmark = benchmark_of(checkpoint, corpus, hotwords=str(words))
        benchmark.transcribe_samples(benchmark.load_samples()[:2])
        return "finished already" in capsys.readouterr().err

    assert [goes_on(text) for text in ("fox\n", "# animals\nfox\n", "dog\n")] == [False, True, False]
    parts = []
    for index, name in ((1, "fox"), (2, "dog")):
        words.write_text(name)
        parts.append(benchmark_of(checkpoint, corpus, hotwords=str(words), shard=f"{index}/2").run_full_benchmark())
    with pytest.raises(DataError, match="they differ in the model's weights, prompt or hotwords"):
        merge_reports([part.report_path for part in parts], corpus.parent / "merged")


def test_shards_joined_are_the_whole(checkpoint: Path, corpus: Path) -> None:
    whole = benchmark_of(checkpoint, corpus).run_full_benchmark()
    parts = [benchmark_of(checkpoint, corpus, shard=f"{index}/4").run_full_benchmark() for index in (1, 2, 3, 4)]
    assert [len(part.samples) for part in parts] == [2, 2, 1, 1]
    assert [part.speed is not None for part in parts] == [True, False, False, False]
    paths = [part.report_path for part in parts]
    merged = merge_reports(paths[::-1], corpus.parent / "merged")
    assert merged.samples == whole.samples
    assert merged.accuracy == whole.accuracy
    assert merged.speed == parts[0].speed
    assert merged.throughput.audio_seconds == pytest.approx(whole.throughput.audio_seconds)
    assert read_report(merged.report_path) == merged
    assert merged.page_path.exists()
    for wrong, message in (
        (paths[:3], "shard 4 of 4 is missing"),
        ([*paths, paths[0]], "are both of shard 1/4"),
        ([whole.report_path], "is the report of a whole"),
    ):
        with pytest.raises(DataError, match=message):
            merge_reports(wrong, corpus.parent / "merged")
    other = benchmark_of(checkpoint, corpus, shard="4/4", decoder="beam", num_beams=2).run_full_benchmark()
    with pytest.raises(DataError, match="they differ in decoder, num_beams"):
        merge_reports([*paths[:3], other.report_path], corpus.parent / "merged")


def test_nan_is_not_measured(checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    broken = speech.brief_checkpoint(checkpoint, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    name = "adapter.layers.0.weight"
    weights[name][0, 0] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"'{broken}' holds NaN or infinity in {name}"):
        benchmark_of(broken, corpus).run_full_benchmark()
    weights[name][0, 0] = 1e38  # a number, but twice of it is none
    weights["adapter.layers.2.weight"][:] = 1e38
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"'{broken}' gives NaN on these recordings"):
        benchmark_of(broken, corpus).run_full_benchmark()
    assert not (corpus.parent / "report").exists()  # no text made of NaN is kept


@pytest.mark.parametrize(("decoder", "guard_silence"), [("ctc", False), ("draft", True)])
def test_an_encoder_that_gives_nan_has_not_heard_silence(
    granite_folder: Path, doge_folder: Path, corpus: Path, tmp_path: Path, decoder: str, guard_silence: bool
) -> None:
    encoder = shutil.copytree(granite_folder, tmp_path / "encoder")
    weights = load_file(encoder / "model.safetensors")
    weights["encoder.input_linear.weight"][:] = 1e38
    save_file(weights, encoder / "model.safetensors", metadata={"format": "pt"})
    assemble_model(encoder, doge_folder, device="cpu").save(tmp_path / "broken")
    with pytest.raises(CheckpointError, match="gives NaN on these recordings"):
        benchmark_of(tmp_path / "broken", corpus, decoder=decoder, guard_silence=guard_silence).run_full_benchmark()


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"max_samples": -1}, "max_samples"),
        ({"num_speed_runs": -1}, "num_speed"),
        ({"num_speed_runs": 0}, "at least 1"),
        ({"batch_sizes": [1, 0]}, "batch_sizes 0"),
        ({"shard": "3/2"}, "shard 3/2"),
        ({"shard": "half"}, "shard half"),
        ({"shard": "7/9"}, "only 6 samples"),
        ({"peer": ["nobody"]}, "peer nobody: no such peer"),
        ({"device": "cuda:99"}, "'cuda:99' is not available"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    checkpoint: Path, corpus: Path, options: dict[str, Any], flag: str
) -> None:
    with pytest.raises(ConfigError, match=flag):
        benchmark_of(checkpoint, corpus, **options).run_full_benchmark()


def test_a_report_that_cannot_be_written_is_an_error_a_user_can_mend(checkpoint: Path, corpus: Path) -> None:
    blocked = corpus.parent / "blocked"
    blocked.write_text("a file, not a folder")
    with pytest.raises(DataError, match="blocked"):
        benchmark_of(checkpoint, corpus, output_dir=str(blocked)).run_full_benchmark()


def test_a_missing_checkpoint_is_named(corpus: Path) -> None:
    with pytest.raises(CheckpointError, match="no-model"):
        benchmark_of(Path("/no-model"), corpus).run_full_benchmark()
