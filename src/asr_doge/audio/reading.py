"""Read any recording as one mono waveform, or block by block.

Promises: for any format, rate and channels, the result is float32 `[samples]` at the wanted rate, finite and not empty.
A bad file gives one `AudioError` line that names it and the remedy; if it is truncated or damaged, the readable part is
given before the error. Block by block, memory does not grow with the length of the recording; pipes are read too. It
does not know features, transcripts or manifests.

This module combines the steps: `files` (paths and pipes), `joined_files` (the parts of a file), `pcm` and
`containers` (decoding), `timeline` (silence for gaps), `channels` (mixing to one), `resampling`.
"""

import math
import os
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from itertools import chain, groupby, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asr_doge.audio.arrays import check_samples, merge_short_blocks
from asr_doge.audio.channels import to_mono
from asr_doge.audio.containers import choose_track, decode
from asr_doge.audio.file_parts import Part
from asr_doge.audio.files import file_on_disk, is_pipe
from asr_doge.audio.joined_files import parts_of
from asr_doge.audio.level import normalize_level
from asr_doge.audio.pcm import UNKNOWN_FRAMES, flac_seconds, open_pcm, pcm_sounds
from asr_doge.audio.resampling import BELIEVABLE_RATES, SAMPLE_RATE, resample_blocks
from asr_doge.audio.sound import Note, Sound, log_note
from asr_doge.audio.timeline import fill_gaps
from asr_doge.errors import AudioError, DamagedAudioError, in_one_line

MINIMUM_SECONDS = 0.1
"""Shorter than any word: such a recording is a mistake and is refused."""
JOINED_SECONDS = 1.0
"""Least length of the blocks in which decoded sound is checked and resampled; packets of speech codecs hold 0.02."""
_BLOCK_SAMPLES = 1 << 16


def read_audio(
    path: str | os.PathLike[str],
    sampling_rate: int = SAMPLE_RATE,
    channel: int | None = None,
    on_note: Note = log_note,
) -> NDArray[np.float32]:
    """Read a recording, or the sound of a video, as mono.

    Args:
        path: the file, or a pipe; its content determines the format, not its extension.
        sampling_rate: wanted rate, in Hz.
        channel: number of the channel to read, from 0; None for the mean of all.
        on_note: called with one line on anything unexpected, such as a track that is not read; default, logged.

    Returns:
        `[samples]`, float32, full scale at 1.

    Raises:
        DamagedAudioError: it is truncated or damaged.
        AudioError: the file is missing, unreadable, not audio, empty, or has NaN.
    """
    return gather(read_blocks(path, sampling_rate, channel, on_note))


def read_clip(
    path: str | os.PathLike[str], sampling_rate: int = SAMPLE_RATE, longest: int | None = None
) -> NDArray[np.float32]:
    """Read a recording that an encoder reads whole, for training from audio and for features alike.

    Its level is that of a clip that is transcribed, see `normalize_level`.

    Args:
        path, sampling_rate: as in `read_audio`.
        longest: samples that the encoder reads at once, if it would cut longer recordings.

    Raises:
        AudioError: as in `read_audio`; or it is shorter than `MINIMUM_SECONDS`, or longer than `longest`.
    """
    return as_clip(read_audio(path, sampling_rate), path, sampling_rate, longest)


def as_clip(
    waveform: NDArray[np.float32], path: str | os.PathLike[str], sampling_rate: int, longest: int | None
) -> NDArray[np.float32]:
    """The clip of a waveform that was read, as `read_clip` returns it; errors as there."""
    check_long_enough(len(waveform), sampling_rate, str(path))
    if longest is not None and len(waveform) > longest:
        raise AudioError(
            f"{path} is {len(waveform) / sampling_rate:.1f} s long: this encoder reads at most"
            f" {longest / sampling_rate:.0f} s at once"
        )
    return normalize_level(waveform)


def check_long_enough(samples: int, sampling_rate: int, name: str) -> None:
    """Refuse a recording that is too short for a word.

    Raises:
        AudioError: it is shorter than `MINIMUM_SECONDS`.
    """
    seconds = samples / sampling_rate
    if seconds < MINIMUM_SECONDS:
        raise AudioError(
            f"{name} is {1000 * seconds:.0f} ms long: too short to hold a word"
            f" (at least {1000 * MINIMUM_SECONDS:.0f} ms)"
        )


def read_blocks(
    path: str | os.PathLike[str],
    sampling_rate: int = SAMPLE_RATE,
    channel: int | None = None,
    on_note: Note = log_note,
) -> Iterator[NDArray[np.float32]]:
    """Read a recording, or the sound of a video, a few seconds at a time; the joined blocks equal `read_audio`.

    Args:
        path, sampling_rate, channel, on_note: as in `read_audio`.

    Yields:
        `[samples]`, float32, never empty.

    Raises:
        AudioError: as in `read_audio`. A fault is reported only when it is reached; for a truncated or damaged
            recording, after its readable part has been given.
    """
    path = Path(path)
    name = in_one_line(str(path))
    faults: list[str] = []
    with file_on_disk(path) as file:
        sounds = (sound for sound in fill_gaps(_sounds(file, name, faults, on_note)) if sound.planes.size)
        first = next(sounds, None)
        if first is None:
            raise (
                _broken(name, faults) if faults else AudioError(f"{name} holds no samples: record or export it again.")
            )
        # Parts of a chain may differ in rate and channels.
        for (rate, _), run in groupby(chain([first], sounds), lambda sound: (sound.rate, len(sound.planes))):
            if rate not in BELIEVABLE_RATES:
                raise AudioError(
                    f"{name} states a sampling rate of {rate} Hz, which no recording has: correct its header."
                )
            mono = merge_short_blocks(
                to_mono((sound.planes for sound in run), rate, name, channel, on_note), math.ceil(JOINED_SECONDS * rate)
            )
            yield from resample_blocks((check_samples(block, name) for block in mono), rate, sampling_rate)
    if faults:
        raise _broken(name, faults)


def _sounds(file: Path, name: str, faults: list[str], on_note: Note) -> Iterator[Sound]:
    """The sound of all parts of a file; each starts when the one before has ended."""
    begin = 0.0
    for part, sounds in _decoded_parts(file, name, faults, on_note):
        try:
            begin += yield from _due_from(begin, sounds)
        except AudioError as error:
            if part.start == 0:
                raise
            faults.append(f"what is joined to it at byte {part.start} {str(error).removeprefix(f'{name} ')}")
        if part.fault:
            faults.append(part.fault)


def _decoded_parts(
    file: Path, name: str, faults: list[str], on_note: Note
) -> Iterator[tuple[Part, Generator[Sound, None, float]]]:
    """Each part of a file with its sound, which is decoded on demand."""
    track = None
    for part in parts_of(file):
        pcm = open_pcm(file, part)
        if pcm is not None:
            yield part, pcm_sounds(pcm, part, faults)
            continue
        if part.stated > 1.0:
            part = replace(part, fault=f"{1 - 1 / part.stated:.0%} of its samples are missing at its end")
        if track is None:
            track = choose_track(file, part, name, on_note)
        yield part, decode(file, part, track, name, faults)


def _due_from(begin: float, sounds: Generator[Sound, None, float]) -> Generator[Sound, None, float]:
    """Sounds of a part that starts `begin` seconds after the recording; returns the duration of the part."""
    while True:
        try:
            sound = next(sounds)
        except StopIteration as end:
            return float(end.value)
        yield replace(sound, start=begin + sound.start) if sound.start is not None else sound


def _broken(name: str, faults: list[str]) -> DamagedAudioError:
    return DamagedAudioError(f"{name} is truncated or corrupt: {faults[0]}; re-copy or re-encode it.")


def count_channels(path: str | os.PathLike[str]) -> int:
    """Channels of a recording; if its parts differ, the largest number.

    Raises:
        AudioError: as in `read_audio`, except for faults within it; or it is a pipe, which can be read only once.
    """
    path = _seekable(path)
    counts = [1]
    for _, sounds in _decoded_parts(path, str(path), [], _ignore):
        counts += [len(sound.planes) for sound in islice(sounds, 1)]
        sounds.close()
    return max(counts)


def audio_duration(path: str | os.PathLike[str]) -> float:
    """Length of a recording in seconds, equal to that of `read_audio`; decoded if the header may be wrong.

    Of a FLAC file only the last frame is decoded, so that damage before it shows only when it is read.

    Raises:
        AudioError: as in `read_audio`; or it is a pipe, which can be read only once.
    """
    path = _seekable(path)
    faults: list[str] = []
    parts = parts_of(path)
    if len(parts) == 1 and parts[0].container == "flac" and parts[0].seconds:
        seconds = flac_seconds(path, parts[0])
        if seconds:
            return seconds
    pcm = open_pcm(path, parts[0]) if len(parts) == 1 and parts[0].stated == 1.0 else None
    if pcm is not None:
        with pcm:
            if pcm.frames < UNKNOWN_FRAMES:
                return float(pcm.frames / pcm.samplerate)
    seconds = sum(sound.seconds for sound in fill_gaps(_sounds(path, str(path), faults, _ignore)))
    if faults:
        raise _broken(str(path), faults)
    if not seconds:
        raise AudioError(f"{path} holds no samples: record or export it again.")
    return seconds


def _seekable(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if is_pipe(path):
        raise AudioError(f"{path} is a pipe, which can be read only once: its length shows when it is transcribed.")
    with file_on_disk(path):
        return path


def _ignore(note: str) -> None:
    """The notes are given when the recording is read, not when only its length is needed."""


def gather(blocks: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Join blocks into `[samples]` in one buffer that grows in place, so a long recording is in memory only once."""
    waveform = np.empty(_BLOCK_SAMPLES, dtype=np.float32)
    filled = 0
    for block in blocks:
        end = filled + block.size
        if end > waveform.size:
            waveform.resize(max(end, waveform.size * 5 // 4), refcheck=False)
        waveform[filled:end] = block
        filled = end
    waveform.resize(filled, refcheck=False)
    return waveform
