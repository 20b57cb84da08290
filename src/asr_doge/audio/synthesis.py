"""Speak a sentence with espeak-ng, a formant synthesizer that needs no model and no network.

Promises: the same text, voice and rate give the same samples, whatever was spoken before, in any thread or process. It
does not know corpora, and its speech is robotic: good for demonstrations, tests and a first lesson of a small model.

Needs the optional package `espeakng-loader`, which carries the espeak-ng library (GPL) and its voices.

Why the library is loaded afresh for every sentence: espeak-ng keeps its pitch flutter, echo and breath noise in static
variables that neither `espeak_Terminate` nor a seed resets, so a second sentence would depend on the first. Unloading
the library is the one thing that resets them; load and start-up cost about 3 ms. Where something else in the process
holds the very same library file open, or the system's loader never unloads (musl), the samples stay audibly the same
but not bit for bit.
"""

import _ctypes
import ctypes
import itertools
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asr_doge.audio.resampling import SAMPLE_RATE, resample
from asr_doge.errors import ASRDogeError, ConfigError

if sys.platform == "win32":
    _unload = _ctypes.FreeLibrary
else:
    _unload = _ctypes.dlclose

# Values of espeak-ng/speak_lib.h.
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000  # without it, missing data ends the whole process
_CHARS_UTF8 = 1
_IPA = 2
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_BUFFER_MILLISECONDS = 500


class _Event(ctypes.Structure):
    """`espeak_EVENT`."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # in milliseconds
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


_LAST_EVENT, _WORD_EVENT = 0, 1

_SAMPLES_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))

# Variants that no person sounds like; a recognizer gains nothing from them.
_UNNATURAL_VARIANTS = frozenset(
    [
        *("whisper", "whisperf", "caleb", "croak"),  # unvoiced or creaking throughout
        *("UniRobot", "anikaRobot", "Demonic", "announcer"),  # robots: a metallic echo on every sound
        *("robosoft", *(f"robosoft{n}" for n in range(2, 9))),
        *("RicishayMax", "RicishayMax2", "RicishayMax3"),  # an echo as loud as the voice
        *("klatt", *(f"klatt{n}" for n in range(2, 7))),  # bare trial settings of the second synthesizer, a flat buzz
        *("kaukovalta", "travis", "Tweaky", "boris"),  # a formant moved by an octave: vowels lose their identity
        "fast",  # a timing trial that sounds exactly like the plain voice
    ]
)

# espeak-ng is one global machine: one sentence at a time. A fork waits for the sentence under way, so that no child
# inherits a held lock or a half-spoken state.
_ESPEAK = threading.Lock()
if sys.platform != "win32":
    os.register_at_fork(before=_ESPEAK.acquire, after_in_parent=_ESPEAK.release, after_in_child=_ESPEAK.release)


@dataclass(frozen=True)
class Voice:
    """Who speaks, and how."""

    name: str = "en-us"
    """An accent, or an accent and a variant: `en-us`, `en-gb+f3`. `voice_names` lists them."""
    words_per_minute: int = 175
    """Speed, 80 to 450."""
    pitch: int = 50
    """Height of the voice relative to its own usual one, 0 (low) to 99 (high)."""
    pitch_range: int = 50
    """Liveliness of the melody, 0 (monotone) to 99."""

    def __post_init__(self) -> None:
        limits = {"words_per_minute": (80, 450), "pitch": (0, 99), "pitch_range": (0, 99)}
        for field, (low, high) in limits.items():
            if not low <= getattr(self, field) <= high:
                raise ConfigError(f"Voice.{field} is {getattr(self, field)}: choose a value from {low} to {high}.")


def voice_names(accents: Sequence[str] | None = None) -> list[str]:
    """List the English voices that sound like a person, each accent plain and with every variant.

    Args:
        accents: accents to list, such as `("en-us", "en-gb")`; all English accents by default.

    Returns:
        Names for `Voice`, sorted.

    Raises:
        ConfigError: an accent that espeak-ng lacks.
        ASRDogeError: `espeakng-loader` is not installed.
    """
    available = _english_accents()
    unknown = sorted(set(accents or ()) - available.keys())
    if unknown:
        raise ConfigError(
            f"espeak-ng has no English accent {unknown[0]!r}: choose from {', '.join(sorted(available))}."
        )
    variants = sorted(_variants() - _UNNATURAL_VARIANTS)
    chosen = available if accents is None else set(accents)
    return sorted(name for accent in chosen for name in (accent, *(f"{accent}+{variant}" for variant in variants)))


def synthesize(text: str, voice: Voice, sampling_rate: int = SAMPLE_RATE) -> NDArray[np.float32]:
    """Speak `text`.

    Args:
        text: what to say; espeak-ng reads numbers and abbreviations its own way. Blank text gives a moment of silence.
        voice: who says it.
        sampling_rate: wanted sampling rate, in Hz.

    Returns:
        `[samples]`, float32 in [-1, 1], with the short silences that espeak-ng leaves at both ends.

    Raises:
        ConfigError: a voice that espeak-ng lacks.
        ASRDogeError: `espeakng-loader` is not installed, or espeak-ng refuses the text.
    """
    return synthesize_timed(text, voice, sampling_rate)[0]


def synthesize_timed(
    text: str, voice: Voice, sampling_rate: int = SAMPLE_RATE
) -> tuple[NDArray[np.float32], list[float]]:
    """Speak `text` as `synthesize` does; also when each of its words begins, in seconds, by espeak-ng's own account."""
    accent, plus, variant = voice.name.partition("+")
    if plus and variant not in _variants():  # espeak-ng would silently speak without the variant
        raise ConfigError(f"espeak-ng has no voice variant {variant!r}: `voice_names()` lists the voices.")
    chosen_name = "+".join(filter(None, (_english_accents().get(accent, accent), variant)))
    chunks: list[bytes] = []
    starts: list[float] = []

    def collect(samples: "ctypes._Pointer[ctypes.c_short]", count: int, events: "ctypes._Pointer[_Event]") -> int:
        if samples and count > 0:
            chunks.append(ctypes.string_at(samples, count * ctypes.sizeof(ctypes.c_short)))
        for event in itertools.takewhile(
            lambda one: one.type != _LAST_EVENT, map(events.__getitem__, itertools.count())
        ):
            starts.extend([event.audio_position / 1000] * (event.type == _WORD_EVENT))
        return 0  # go on

    callback = _SAMPLES_CALLBACK(collect)
    with _ESPEAK, _fresh_library() as (library, native_rate):
        library.espeak_SetSynthCallback(callback)
        # A wrong name leaves the former voice in place and only the return code tells.
        if library.espeak_SetVoiceByName(chosen_name.encode()) != 0:
            raise ConfigError(f"espeak-ng has no voice {voice.name!r}: `voice_names()` lists the voices.")
        _set_parameters(library, voice)
        _speak(library, text)
    samples = np.frombuffer(b"".join(chunks), dtype=np.int16).astype(np.float32) / 32768.0
    waveform = resample(samples, native_rate, sampling_rate)
    # The resampling filter can overshoot by a little where espeak-ng is at full scale.
    peak = max(1.0, float(np.abs(waveform).max(initial=0.0)))
    return np.asarray(waveform / np.float32(peak), dtype=np.float32), starts


def phonemize(text: str, accent: str = "en-us") -> str:
    """How espeak-ng would say `text`: phonemes of the International Phonetic Alphabet, clauses parted by commas.

    Raises:
        ConfigError: an accent that espeak-ng lacks.
        ASRDogeError: `espeakng-loader` is not installed.
    """
    rest, clauses = ctypes.c_char_p(text.replace("\0", " ").encode(errors="replace")), []
    with _ESPEAK, _fresh_library() as (library, _):
        if library.espeak_SetVoiceByName(_english_accents().get(accent, accent).encode()) != 0:
            raise ConfigError(f"espeak-ng has no English accent {accent!r}: `voice_names()` lists the voices.")
        library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        while rest.value:
            clauses.append(library.espeak_TextToPhonemes(ctypes.byref(rest), _CHARS_UTF8, _IPA).decode())
    return ", ".join(clause for clause in clauses if clause)


def _set_parameters(library: ctypes.CDLL, voice: Voice) -> None:
    settings = {_RATE: voice.words_per_minute, _VOLUME: 100, _PITCH: voice.pitch, _RANGE: voice.pitch_range}
    for parameter, value in settings.items():
        library.espeak_SetParameter(parameter, value, 0)


def _speak(library: ctypes.CDLL, text: str) -> None:
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # breath noise
    if sys.platform != "win32":
        library.srand(1)  # the second synthesizer's breath noise comes from the C library's generator instead
    encoded = text.replace("\0", " ").encode(errors="replace")
    beginning, position_type, end = ctypes.c_uint(0), ctypes.c_int(1), ctypes.c_uint(0)
    size = ctypes.c_size_t(len(encoded) + 1)
    flags = ctypes.c_uint(_CHARS_UTF8)
    code = library.espeak_Synth(ctypes.c_char_p(encoded), size, beginning, position_type, end, flags, None, None)
    if code != 0:
        raise ASRDogeError(f"espeak-ng cannot speak {text[:40]!r} (code {code}): shorten or change the text.")


@contextmanager
def _fresh_library() -> Iterator[tuple[ctypes.CDLL, int]]:
    """Load and start espeak-ng; yield it with its sampling rate in Hz; stop and unload it."""
    library_path, data_path = _installation()
    library = ctypes.CDLL(library_path)
    try:
        data = ctypes.c_char_p(os.fsencode(data_path))
        rate = library.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, _BUFFER_MILLISECONDS, data, _INITIALIZE_DONT_EXIT)
        if rate <= 0:
            raise ASRDogeError(f"espeak-ng cannot read its data in {data_path}: reinstall 'espeakng-loader'.")
        try:
            yield library, rate
        finally:
            library.espeak_Terminate()
    finally:
        _unload(library._handle)


def _installation() -> tuple[str, Path]:
    """Paths of the espeak-ng library and of its data folder."""
    try:
        import espeakng_loader
    except ImportError:
        remedy = "pip install 'asr-doge[synthesis]'"
        raise ASRDogeError(f"Speech synthesis needs the package 'espeakng-loader': {remedy}") from None
    return espeakng_loader.get_library_path(), Path(espeakng_loader.get_data_path())


def _variants() -> frozenset[str]:
    """Every voice variant, spelled as its file, which is how espeak-ng finds it."""
    return frozenset(path.name for path in (_installation()[1] / "voices" / "!v").iterdir())


def _english_accents() -> dict[str, str]:
    """English accents by language tag, each with the name that espeak-ng selects it by: its file's.

    The two differ for one: British English, `en-gb`, lies in the file `en`, and asking for `en-gb` fails.
    """
    accents = {}
    for path in (_installation()[1] / "lang" / "gmw").glob("en*"):
        lines = path.read_text(encoding="utf-8").splitlines()
        tag = next(line.split()[1] for line in lines if line.startswith("language "))
        if tag != "en-shaw":  # reads only the Shavian alphabet
            accents[tag] = path.name
    return accents
