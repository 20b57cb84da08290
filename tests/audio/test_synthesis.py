"""The same request always gives the same speech, and a wrong one says so."""

import multiprocessing
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from asr_doge.audio.synthesis import Voice, phonemize, synthesize, synthesize_timed, voice_names
from asr_doge.errors import ASRDogeError, ConfigError

TEXT = "The quick brown fox, number 47."
# Each keeps another kind of state inside espeak-ng: pitch flutter, echo, breath noise, and the second synthesizer with
# its own breath noise.
STATEFUL = ["en-us", "en-us+f3", "en-gb+f2", "en-us+whisper", "en-us+klatt4", "en-gb-scotland+Reed"]


def speak(name: str) -> NDArray[np.float32]:
    return synthesize(TEXT, Voice(name))


def fundamental(waveform: NDArray[np.float32]) -> float:
    """Median height of the voice in Hz, by autocorrelation of the loud frames of 64 ms."""
    frames = waveform[: waveform.size // 1024 * 1024].reshape(-1, 1024) * np.hanning(1024)
    loud = frames[frames.std(axis=1) > 0.5 * frames.std(axis=1).max()]
    correlation = np.fft.irfft(np.abs(np.fft.rfft(loud, 4096)) ** 2)[:, 32:320]
    return float(np.median(16000 / (32 + correlation.argmax(axis=1))))


def test_speech_does_not_depend_on_what_was_spoken_before() -> None:
    first = {name: speak(name) for name in STATEFUL}
    for name in [*reversed(STATEFUL), *STATEFUL[::2], *STATEFUL[1::2]]:
        np.testing.assert_array_equal(speak(name), first[name], err_msg=name)


def test_threads_speak_as_one_after_another() -> None:
    alone = [speak(name) for name in STATEFUL]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(speak, STATEFUL * 3))
    for waveform, expected in zip(together, alone * 3, strict=True):
        np.testing.assert_array_equal(waveform, expected)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_speak_the_same(method: str) -> None:
    alone = [speak(name) for name in STATEFUL]
    with multiprocessing.get_context(method).Pool(2) as workers:
        together = workers.map_async(speak, STATEFUL).get(timeout=60)
    for waveform, expected in zip(together, alone, strict=True):
        np.testing.assert_array_equal(waveform, expected)


def test_a_worker_forked_in_mid_sentence_does_not_hang() -> None:
    done = threading.Event()

    def chatter() -> None:
        while not done.is_set():
            speak("en-us")

    thread = threading.Thread(target=chatter)
    thread.start()
    try:
        for _ in range(5):
            with multiprocessing.get_context("fork").Pool(1) as workers:
                assert workers.apply_async(speak, ("en-us",)).get(timeout=60).size > 0
    finally:
        done.set()
        thread.join()


def test_every_listed_voice_speaks_and_no_two_alike() -> None:
    names = voice_names(["en-us"]) + [name for name in voice_names() if "+" not in name and name != "en-us"]
    spoken = {}
    for name in names:
        waveform = speak(name)
        assert waveform.dtype == np.float32
        assert 1.0 < waveform.size / 16000 < 5.0, name
        assert 0.05 < np.abs(waveform).max() <= 1.0, name
        spoken[waveform.tobytes()] = name
    assert len(spoken) == len(names)


def test_the_list_is_sorted_broad_and_without_whispers_and_robots() -> None:
    names = voice_names()
    assert names == sorted(set(names))
    assert {"en-us", "en-gb", "en-gb-scotland", "en-us+f3", "en-gb+m3"} <= set(names)
    assert len(names) > 300
    assert not [name for name in names if "whisper" in name or "robo" in name.lower()]
    assert {name.split("+")[0] for name in voice_names(["en-gb"])} == {"en-gb"}


@pytest.mark.parametrize("rate", [8000, 22050, 44100])
def test_the_rate_changes_the_samples_not_the_duration(rate: int) -> None:
    duration = synthesize(TEXT, Voice(), rate).size / rate
    assert duration == pytest.approx(synthesize(TEXT, Voice()).size / 16000, abs=0.001)


def test_the_settings_are_heard() -> None:
    plain = speak("en-us")
    assert synthesize(TEXT, Voice(words_per_minute=90)).size > 1.4 * plain.size
    assert synthesize(TEXT, Voice(words_per_minute=350)).size < 0.7 * plain.size
    low, high = synthesize(TEXT, Voice(pitch=5)), synthesize(TEXT, Voice(pitch=95))
    assert fundamental(low) * 1.3 < fundamental(high)
    assert not np.array_equal(plain, synthesize(TEXT, Voice(pitch_range=0)))


def test_a_long_text_is_spoken_to_its_end() -> None:
    assert synthesize(f"{TEXT} " * 50, Voice()).size > 40 * speak("en-us").size


def test_odd_texts_are_spoken_or_silent() -> None:
    assert not synthesize("  ", Voice()).any()
    assert synthesize("naïve café, 東京 and €5", Voice()).any()
    assert synthesize("one\0two three four", Voice()).size > 1.5 * synthesize("one", Voice()).size


@pytest.mark.parametrize("name", ["zz", "en-us+nobody", "en-us+F3", "en-us+", ""])
def test_an_unknown_voice_is_not_replaced_by_another(name: str) -> None:
    with pytest.raises(ConfigError, match="voice_names"):
        synthesize(TEXT, Voice(name))
    np.testing.assert_array_equal(speak("en-us"), speak("en-us"))


def test_words_begin_where_they_are_heard() -> None:
    waveform, starts = synthesize_timed("six, nine, four", Voice())
    np.testing.assert_array_equal(waveform, synthesize("six, nine, four", Voice()))
    sounding = np.abs(waveform) > 0.01
    assert starts[0] == 0.0
    for start in starts[1:]:  # of silence
        moment = round(16000 * start)
        assert not sounding[moment - 800 : moment - 160].any()
        assert sounding[moment : moment + 800].any()


def test_an_unknown_accent_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'en-moon'.*en-gb"):
        voice_names(["en-us", "en-moon"])


@pytest.mark.parametrize(("field", "value"), [("words_per_minute", 10), ("pitch", 100), ("pitch_range", -1)])
def test_a_wrong_setting_is_named(field: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"Voice\.{field} "):
        Voice(**{field: value})  # type: ignore[arg-type]


def test_without_espeak_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)  # what Python itself does for a package that is absent
    with pytest.raises(ASRDogeError, match=r"pip install 'asr-doge\[synthesis\]'"):
        synthesize(TEXT, Voice())


def test_phonemes_are_those_of_espeak_ng_and_speaking_goes_on_after_them() -> None:
    """The transcriptions are what the program prints: `espeak-ng -q --ipa -v en-us hello`."""
    before = synthesize("hello", Voice())
    assert phonemize("hello") == "həlˈoʊ"  # noqa: RUF001 - stress marks
    assert phonemize("hello", "en-gb") == "həlˈəʊ"  # noqa: RUF001 - stress marks
    assert phonemize("Yes, no.") == "jˈɛs, nˈoʊ"  # noqa: RUF001 - stress marks
    assert phonemize("") == ""
    assert np.array_equal(synthesize("hello", Voice()), before)
    with pytest.raises(ConfigError, match="'qq'"):
        phonemize("hello", "qq")
