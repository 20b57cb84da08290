"""What comes out belongs to what went in, in its order, whatever the format, the length or the company."""

import dataclasses
import shutil
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

import asr_doge
from asr_doge.audio import Voice, read_audio, synthesize
from asr_doge.audio.voice_activity import VoiceActivityDetector
from asr_doge.decoding import DecodingConfig
from asr_doge.decoding.recognition import Recognition, Recognizer
from asr_doge.errors import AudioError
from asr_doge.inference import chunking, transcription
from asr_doge.inference.chunking import Chunk
from asr_doge.inference.cutting import cut_into_chunks
from asr_doge.inference.results import FailedTranscription, GuardAction, Transcription
from asr_doge.inference.transcription import SourceWithOptions, Transcriber, load, transcribe
from asr_doge.models import load_model
from tests.inference.conftest import UNGUARDED
from tests.models import tiny
from tests.speech import RATE, edit_json, write_wav

SENTENCES = ("one two three four five six", "seven eight nine", "zero one two three")


def spoken(text: str) -> NDArray[np.float32]:
    return synthesize(text, Voice("en-us"))


SECONDS = (1.7, 0.4, 0.9, 2.6, 0.5, 1.2, 0.7, 2.0, 0.3)
WAVEFORMS = [tiny.random_waveform(seconds, seed=seed) for seed, seconds in enumerate(SECONDS)]


def text_of(transcriber: Transcriber, source: transcription.Source) -> str:
    return transcriber.transcribe(source).text


@pytest.fixture(scope="module")
def alone(transcriber: Transcriber) -> list[str]:
    """The texts of WAVEFORMS, each transcribed by itself."""
    return [text_of(transcriber, waveform) for waveform in WAVEFORMS]


def test_different_recordings_give_different_texts(alone: list[str]) -> None:
    """Else the tests below could not fail."""
    assert len(set(alone)) > len(alone) // 2
    assert all(alone)


@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
def test_batching_changes_neither_texts_nor_order(transcriber: Transcriber, alone: list[str], batch_size: int) -> None:
    results = Transcriber(transcriber.loaded, batch_size, UNGUARDED).transcribe(WAVEFORMS)
    assert [result.text for result in results] == alone
    assert [result.duration for result in results] == pytest.approx(SECONDS)


def test_the_voice_detector_is_asked_only_for_bounds_that_no_words_give(
    transcriber: Transcriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes longer than a small model does."""
    asked = []

    class Watched(VoiceActivityDetector):
        def feed(self, samples: NDArray[np.float32]) -> list[bool]:
            asked.append(len(samples))
            return super().feed(samples)

    monkeypatch.setattr(chunking, "VoiceActivityDetector", Watched)
    clip = spoken(SENTENCES[1])
    with_times = Transcriber(transcriber.loaded, decoding=dataclasses.replace(UNGUARDED, timestamps="word"))
    assert with_times.transcribe(clip).segments[0].words
    assert asked == []
    bare = Transcriber(transcriber.loaded, decoding=dataclasses.replace(UNGUARDED, timestamps="none"))
    late = np.concatenate([np.zeros(round(0.8 * RATE), np.float32), clip])
    assert bare.transcribe(late).segments
    assert asked == []
    (chunk,) = cut_into_chunks([late], 30.0)
    assert chunk.speech_bounds()[0] == pytest.approx(0.8, abs=0.2)
    assert asked == [len(late)]


def test_each_recording_is_transcribed_in_its_language(brief_folder: Path, tmp_path: Path) -> None:
    """Also where recordings of several languages, whose prompts differ in length, share a batch."""
    folder = tmp_path / "told"
    shutil.copytree(brief_folder, folder)
    edit_json(folder / "config.json", prompt_template="the {language} sea: ")
    loaded = load_model(folder, device="cpu", dtype=torch.float64)
    languages = ("de", "en", None, "luxembourgish")

    def alone(index: int, language: str | None) -> str:
        return text_of(Transcriber(loaded, decoding=UNGUARDED, language=language), WAVEFORMS[index])

    spoken = [SourceWithOptions(WAVEFORMS[index], language) for index, language in enumerate(languages)]
    together = Transcriber(loaded, 4, UNGUARDED).transcribe_each(spoken)
    texts = [result.text for result in together if isinstance(result, Transcription)]
    assert texts == [alone(index, language) for index, language in enumerate(languages)]
    assert texts != [alone(index, None) for index in range(len(languages))]
    assert alone(0, "german") == alone(0, "de")


def test_silence_in_a_batch_shifts_no_language(brief_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "told"
    shutil.copytree(brief_folder, folder)
    edit_json(folder / "config.json", prompt_template="the {language} sea: ")
    recognizer = Recognizer(load_model(folder, device="cpu", dtype=torch.float64), DecodingConfig(guard_loops=False))
    first, second = WAVEFORMS[1], WAVEFORMS[8]  # too short to be taken for steady noise
    silence = np.zeros(RATE, dtype=np.float32)
    heard = recognizer.recognize([silence, first, silence, second], languages=["fr", "de", "en", "luxembourgish"])
    (german,), (luxembourgish,) = (
        recognizer.recognize([first], None, ["de"]),
        recognizer.recognize([second], None, ["lb"]),
    )
    assert heard == [heard[0], german, heard[0], luxembourgish]
    assert heard[0].guards == ("silence",)
    assert german != recognizer.recognize([first], None, ["fr"])[0]


def test_one_in_one_out_list_in_list_out(transcriber: Transcriber, alone: list[str]) -> None:
    nothing: list[transcription.Source] = []
    assert transcriber.transcribe(nothing) == []
    one = transcriber.transcribe(WAVEFORMS[0])
    assert (one.text, one.duration, one.path) == (alone[0], SECONDS[0], None)
    assert transcriber.transcribe(WAVEFORMS[:1]) == transcriber.transcribe((WAVEFORMS[0],)) == [one]


def test_file_array_and_tensor_give_the_same_text(transcriber: Transcriber, alone: list[str], tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", WAVEFORMS[0], subtype="FLOAT")
    result = transcriber.transcribe(str(path))
    assert (result.text, result.duration, result.path) == (alone[0], SECONDS[0], path)
    stereo = np.stack([WAVEFORMS[0], WAVEFORMS[0]])
    for source in (path, torch.from_numpy(WAVEFORMS[0]), WAVEFORMS[0].astype(np.float64), stereo):
        assert text_of(transcriber, source) == alone[0]
    integers = (np.clip(WAVEFORMS[0], -1, 1) * 32767).astype(np.int16)
    assert text_of(transcriber, integers) == text_of(transcriber, integers.astype(np.float32) / 32768)


def test_any_format_rate_and_channels_in_order(transcriber: Transcriber, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sources: list[transcription.Source] = [
        write_wav(tmp_path / "telephone.mp3", rng.normal(0, 0.1, (12_000, 2)).astype(np.float32), 8_000),
        WAVEFORMS[1],
        write_wav(tmp_path / "studio.flac", rng.normal(0, 0.1, (24_000, 2)).astype(np.float32), 48_000),
        torch.from_numpy(WAVEFORMS[2]),
        write_wav(tmp_path / "voice.ogg", WAVEFORMS[3]),
    ]
    results = list(transcriber.transcribe_each(sources))
    assert [result.path for result in results] == [
        tmp_path / "telephone.mp3",
        None,
        tmp_path / "studio.flac",
        None,
        tmp_path / "voice.ogg",
    ]
    for result, source in zip(results, sources, strict=True):
        waveform: Any = read_audio(source) if isinstance(source, Path) else source
        assert isinstance(result, Transcription)
        assert result.text == text_of(transcriber, waveform)
        assert result.duration == pytest.approx(len(waveform) / RATE)


def unusable(folder: Path) -> dict[str, transcription.Source]:
    """Sources that hold nothing to transcribe, by what the error says of them."""
    (folder / "notes.wav").write_text("not audio")
    (folder / "empty.wav").touch()
    return {
        "does not exist": folder / "missing.wav",
        "not audio": folder / "notes.wav",
        "0 bytes": folder / "empty.wav",
        "is a folder": folder,
        "holds no samples": np.zeros(0, dtype=np.float32),
        "10 ms long: too short": tiny.random_waveform(0.01),
        "NaN": np.full(RATE, np.nan, dtype=np.float32),
        "axes": np.zeros((2, 2, RATE), dtype=np.float32),
    }


def test_unreadable_recordings_fail_in_their_place(transcriber: Transcriber, alone: list[str], tmp_path: Path) -> None:
    bad = unusable(tmp_path)
    sources: list[transcription.Source] = [WAVEFORMS[0], *bad.values(), WAVEFORMS[1]]
    first, *failures, last = transcriber.transcribe_each(sources)
    assert isinstance(first, Transcription)
    assert isinstance(last, Transcription)
    assert [first.text, last.text] == alone[:2]
    for failure, (finding, source) in zip(failures, bad.items(), strict=True):
        assert isinstance(failure, FailedTranscription)
        assert finding in str(failure.error)
        assert "\n" not in str(failure.error)
        assert failure.path == (source if isinstance(source, Path) else None)


def test_asked_for_texts_an_unreadable_recording_is_an_error(transcriber: Transcriber, tmp_path: Path) -> None:
    for finding, source in unusable(tmp_path).items():
        with pytest.raises(AudioError, match=finding):
            transcriber.transcribe([WAVEFORMS[1], source])
        with pytest.raises(AudioError, match=finding):
            transcriber.transcribe(source)


def test_segments_hold_the_text_and_its_stretches(transcriber: Transcriber, alone: list[str]) -> None:
    one = transcriber.transcribe(WAVEFORMS[0])
    assert [segment.text for segment in one.segments] == [alone[0]]
    assert 0.0 <= one.segments[0].start <= one.segments[0].end <= SECONDS[0]
    assert one.passes >= 1
    assert one.guards == ()


def test_a_whole_recording_is_bounded_by_its_words(transcriber: Transcriber) -> None:
    """Whether times were asked for or not; the detector is for encoders that give none."""
    asking = Transcriber(transcriber.loaded, decoding=dataclasses.replace(UNGUARDED, timestamps="segment"))
    for waveform in WAVEFORMS[:3]:
        (bare,), (timed,) = (one.transcribe(waveform).segments for one in (transcriber, asking))
        assert (bare.start, bare.end, bare.words) == (timed.start, timed.end, ())


def test_digital_silence_is_empty_and_says_why(transcriber: Transcriber) -> None:
    guarded = Transcriber(transcriber.loaded)
    silence = np.zeros(2 * RATE, dtype=np.float32)
    faint = np.full(RATE, 1e-5, dtype=np.float32)
    results = guarded.transcribe([silence, faint])
    assert [result.text for result in results] == ["", ""]
    assert results[0] == Transcription("", 2.0, guards=(GuardAction("silence", 0.0, 2.0),))


def test_a_recording_that_fits_is_read_whole(transcriber: Transcriber) -> None:
    """As training and its evaluations read it, whatever its pauses; unless it is asked to be cut."""
    faint = np.random.default_rng(0).integers(-6, 7, 3 * RATE // 2).astype(np.float32) / np.float32(32768)
    clip = np.concatenate([spoken(SENTENCES[1]), faint, spoken(SENTENCES[2])])
    (heard,) = transcriber.recognizer.recognize([clip])
    assert [segment.text for segment in transcriber.transcribe(clip).segments] == [heard.text]
    longest = Transcriber(transcriber.loaded, decoding=UNGUARDED)
    longest.max_seconds = len(clip) / RATE - 0.1
    cutting = Transcriber(transcriber.loaded, decoding=dataclasses.replace(UNGUARDED, cut_at_pauses=True))
    assert len(longest.transcribe(clip).segments) == len(cutting.transcribe(clip).segments) == 2


def test_a_clip_as_long_as_the_longest_to_train_on_fits(brief_folder: Path, tmp_path: Path) -> None:
    """A manifest rounds its duration, 72,193 samples, down to 4.512062 s."""
    folder = tmp_path / "model"
    shutil.copytree(brief_folder, folder)
    edit_json(folder / "config.json", max_audio_seconds=round(72_193 / RATE, 6))
    (segment,) = Transcriber(load_model(folder, device="cpu"), decoding=UNGUARDED).transcribe(WAVEFORMS[0]).segments
    whole = Transcriber(load_model(folder, device="cpu"), decoding=UNGUARDED)
    assert len(list(cut_into_chunks([np.zeros(72_193, dtype=np.float32)], whole.max_seconds))) == 1
    assert len(list(cut_into_chunks([np.zeros(72_193 + RATE // 100, dtype=np.float32)], whole.max_seconds))) == 2
    assert segment.text


def test_a_long_recording_is_read_in_pieces(transcriber: Transcriber) -> None:
    transcriber = Transcriber(transcriber.loaded, decoding=dataclasses.replace(UNGUARDED, cut_at_pauses=True))
    parts = [spoken(sentence) for sentence in SENTENCES]
    long = np.concatenate([part for sentence in parts for part in (sentence, np.zeros(2 * RATE, dtype=np.float32))])
    results = transcriber.transcribe([long, WAVEFORMS[0]])
    assert results[0].duration == pytest.approx(len(long) / RATE)
    assert results[1].text == text_of(transcriber, WAVEFORMS[0])
    chunks = [chunk for chunk in cut_into_chunks([long], cut_at_pauses=True) if not chunk.is_gap]
    assert len(chunks) == len(parts)
    texts = [text_of(transcriber, chunk.samples) for chunk in chunks]
    assert results[0].text == " ".join(texts)
    segments = results[0].segments
    assert [segment.text for segment in segments] == texts
    begun = 0.0
    for segment, part in zip(segments, parts, strict=True):
        assert begun - 0.1 <= segment.start < segment.end <= begun + len(part) / RATE + 0.5
        begun += len(part) / RATE + 2.0


def test_of_a_recording_that_breaks_off_late_what_is_there_is_kept(
    transcriber: Transcriber, alone: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(transcription, "BUFFER_SECONDS", 2.0)
    monkeypatch.setattr(transcriber, "batch_size", 2)
    whole = np.concatenate([spoken(sentence) for sentence in SENTENCES for _ in range(4)])
    path = write_wav(tmp_path / "cut.flac", whole)
    path.write_bytes(path.read_bytes()[:-20_000])
    first, kept, last = transcriber.transcribe_each([WAVEFORMS[0], path, WAVEFORMS[1]])
    assert isinstance(kept, Transcription)
    assert kept.text
    assert 0.5 * len(whole) / RATE < kept.duration < len(whole) / RATE
    assert kept.incomplete is not None
    assert "truncated or corrupt" in kept.incomplete
    assert isinstance(first, Transcription)
    assert isinstance(last, Transcription)
    assert [first.text, last.text] == alone[:2]


def test_a_long_file_is_never_held_whole(transcriber: Transcriber, tmp_path: Path) -> None:
    """Nor are its chunks, between reading and their turn."""
    minute = np.zeros(60 * RATE, dtype=np.float32)
    said = spoken("seven")
    minute[30 * RATE : 30 * RATE + len(said)] = said
    path = tmp_path / "long.flac"
    with soundfile.SoundFile(path, "w", RATE, 1) as file:
        for _ in range(12):
            file.write(minute)
    tracemalloc.start()
    result = transcriber.transcribe(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.duration == 12 * 60
    assert [segment.start for segment in result.segments] == pytest.approx([60 * n + 30 for n in range(12)], abs=0.2)
    assert peak < 20 * 2**20  # its samples are 44 MiB


def test_progress_adds_up_to_the_audio(transcriber: Transcriber) -> None:
    heard: list[float] = []
    silence = np.zeros(3 * RATE, dtype=np.float32)
    sources = [np.concatenate([spoken(SENTENCES[0]), silence, silence, spoken(SENTENCES[1])]), WAVEFORMS[0]]
    results = list(transcriber.transcribe_each(sources, heard.append))
    assert sum(heard) == pytest.approx(sum(len(source) for source in sources) / RATE)
    assert len(results) == 2


def test_portions_keep_order_and_failures(
    transcriber: Transcriber, alone: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(transcription, "BUFFER_SECONDS", 2.0)
    monkeypatch.setattr(transcriber, "batch_size", 2)
    sources: list[transcription.Source] = [*WAVEFORMS[:4], tmp_path / "missing.wav", *WAVEFORMS[4:]]
    results = list(transcriber.transcribe_each(sources))
    texts = [result.text if isinstance(result, Transcription) else None for result in results]
    assert texts == [*alone[:4], None, *alone[4:]]


def test_sources_are_read_as_they_are_needed(transcriber: Transcriber, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results of the first come before the last is asked for, so a stream of files needs no end.

    While the model works on some, as many more are read, and no others.
    """
    monkeypatch.setattr(transcription, "BUFFER_SECONDS", 1.0)
    monkeypatch.setattr(transcriber, "batch_size", 3)
    given = 0

    def endless() -> Iterator[transcription.Source]:
        nonlocal given
        while True:
            given += 1
            yield WAVEFORMS[1]

    results = transcriber.transcribe_each(endless())
    for number in range(1, 8):
        next(results)
        assert number <= given <= 3 * (-(-number // 3) + 1)  # of 0.4 s each


def test_a_large_batch_is_filled_once_results_have_begun(
    transcriber: Transcriber, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The first results do not wait for it."""
    monkeypatch.setattr(transcription, "BUFFER_SECONDS", 2.0)
    monkeypatch.setattr(transcription, "FIRST_BUFFER_SECONDS", 1.0)
    monkeypatch.setattr(transcriber, "batch_size", 16)
    sizes: list[int] = []
    recognize = transcriber.recognize_chunks

    def noted(chunks: Sequence[Chunk], *options: Any) -> list[Recognition]:
        sizes.append(len(chunks))
        return recognize(chunks, *options)

    monkeypatch.setattr(transcriber, "recognize_chunks", noted)
    missing = [tmp_path / "missing.wav"] * 3  # which give the model nothing to do meanwhile
    list(transcriber.transcribe_each([*missing, *[WAVEFORMS[1]] * 40]))  # of 0.4 s each
    assert sizes == [3, 16, 16, 5]


def test_beam_search_is_the_models_own(transcriber: Transcriber) -> None:
    loaded = transcriber.loaded
    beams = dataclasses.replace(UNGUARDED, num_beams=3)
    ids = loaded.model.generate(**loaded.processor(WAVEFORMS[0], sampling_rate=RATE), num_beams=3)
    (heard,) = Transcriber(loaded, decoding=beams).recognizer.recognize([WAVEFORMS[0]])
    assert heard.text == loaded.processor.batch_decode(ids)[0]


def test_the_types_say_what_comes_out(transcriber: Transcriber, brief_folder: Path, tmp_path: Path) -> None:
    """Held by mypy: one recording gives one result, a list a list."""
    path = write_wav(tmp_path / "a.wav", WAVEFORMS[4])
    one: Transcription = transcriber.transcribe(path)
    several: list[Transcription] = transcriber.transcribe([path, str(path)])
    also_one: Transcription = asr_doge.transcribe(str(path), model=brief_folder, device="cpu")
    also_several: list[Transcription] = asr_doge.transcribe((path, WAVEFORMS[4]), model=brief_folder, device="cpu")
    assert [len(several), len(also_several)] == [2, 2]
    assert one.path == also_one.path == path


def test_the_packages_front_door(brief_folder: Path, tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", WAVEFORMS[0])
    loaded = load(brief_folder, device="cpu")
    result = asr_doge.transcribe(path, model=brief_folder, device="cpu")
    assert result == loaded.transcribe(path) == transcribe(path, brief_folder, "cpu")
    assert asr_doge.transcribe([path, path], model=brief_folder, device="cpu") == [result, result]
    assert isinstance(asr_doge.load(brief_folder, "cpu"), asr_doge.Transcriber)
    with pytest.raises(AttributeError, match="nonsense"):
        asr_doge.nonsense  # noqa: B018


def test_a_reloaded_model_writes_the_same(brief_folder: Path, transcriber: Transcriber, tmp_path: Path) -> None:
    transcriber.loaded.save(tmp_path / "again")
    again = Transcriber(load_model(tmp_path / "again", device="cpu", dtype=torch.float64), decoding=UNGUARDED)
    assert again.transcribe(WAVEFORMS[:3]) == transcriber.transcribe(WAVEFORMS[:3])
