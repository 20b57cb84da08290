"""Read uncompressed samples: WAV and similar files through libsndfile, and samples without a header.

Promises: samples are exactly as stored; a file that has fewer than its header states has a fault. A file's name counts
for nothing, and nothing is printed. Compressed formats and VOC are left to FFmpeg, which reads them to the last packet,
while libsndfile trusts an estimated length.
What it cannot detect: a wrong rate in a header is believed if a recording could have that rate.
"""

import os
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from asr_doge.audio.file_parts import Part, open_part
from asr_doge.audio.resampling import SAMPLE_RATE, checked_rate, resample_blocks
from asr_doge.audio.sound import Sound
from asr_doge.errors import AudioError

# soundfile is imported where it is used: it loads a large library that `asr-doge --help` does not need.
if TYPE_CHECKING:
    from soundfile import SoundFile

_FOR_FFMPEG = ("FLAC", "MP3", "OGG", "VOC")
"""Compressed formats; and Creative Voice files, of whose blocks libsndfile takes the headers for samples."""
_BLOCK_SAMPLES = 1 << 16
_CONTAINERS = (b"RIFF", b"fLaC", b"OggS", b"FORM", b"caff", b"ID3\x03", b"ID3\x04")
"""How files of sound begin; as samples they would be a click that hardly a recording begins with."""
UNKNOWN_FRAMES = 1 << 62
_SHORTFALL_SECONDS = 0.1


def open_pcm(path: Path, part: Part) -> "SoundFile | None":
    """A part of a file opened with libsndfile; None if FFmpeg must read it."""
    import soundfile

    if part.container:  # none of libsndfile's, or one whose decoder prints what it thinks of the file, as that of MP3
        return None
    is_whole = part.start == 0 and part.end == path.stat().st_size
    if is_whole:  # not by name, whose extension it would believe: a text called `.gsm` or `.snd` would be sound
        file: Any = os.open(path, os.O_RDONLY)
        os.lseek(file, 0, os.SEEK_SET)  # on macOS, `/dev/fd/…` stands where others left it
    else:
        file = open_part(path, part)
    try:
        opened = soundfile.SoundFile(file)  # closes a descriptor, also if it fails
    except soundfile.LibsndfileError:
        return None
    # If the recorder did not write the length of a WAV, libsndfile reads nothing.
    if opened.format in _FOR_FFMPEG or opened.frames == 0:
        opened.close()
        return None
    return opened


def flac_seconds(path: Path, part: Part) -> float | None:
    """Length that the header of a part in FLAC states, if its last sample is there; None if all is to be decoded."""
    import soundfile

    try:
        with open_part(path, part) as content, soundfile.SoundFile(content) as file:  # of a name it believes the ending
            file.seek(file.frames - 1)  # fails unless the frame that ends there is whole: its checksum is looked at
            return float(file.frames / file.samplerate) if len(file.read(2)) == 1 else None
    except (soundfile.LibsndfileError, OSError, ValueError):
        return None


def pcm_sounds(file: "SoundFile", part: Part, faults: list[str]) -> Generator[Sound, None, float]:
    """The samples of a file of `open_pcm`, closed at the end; adds to `faults`, and returns the length in seconds."""
    import soundfile

    frames = 0
    with closing(file):
        try:
            while len(block := file.read(_BLOCK_SAMPLES, dtype="float32", always_2d=True)):
                frames += len(block)
                yield Sound(block.T, file.samplerate)
        except soundfile.LibsndfileError as error:
            faults.append(str(error.error_string).strip(" .") or "it cannot be decoded")
        held = frames / file.samplerate
        stated = file.frames / file.samplerate * part.stated if file.frames < UNKNOWN_FRAMES else 0.0
    if held < stated - _SHORTFALL_SECONDS:
        faults.append(f"its header promises {stated:.2f} s, but it holds {held:.2f} s")
    return held


def pcm_blocks(file: BinaryIO, from_rate: int, to_rate: int = SAMPLE_RATE) -> Iterator[NDArray[np.float32]]:
    """Samples without a header, from a pipe or a file, as they arrive.

    Args:
        file: 16-bit little-endian mono samples. A buffered reader gives what has arrived; others wait for full blocks.
        from_rate: their rate, in Hz. Resampling from another rate than `to_rate` delays them by a second or two.
        to_rate: wanted rate, in Hz.

    Yields:
        `[samples]`, float32.

    Raises:
        AudioError: an invalid rate, the header of a file, or, after all blocks, an end in the middle of a sample.
    """
    yield from resample_blocks(_samples_of(file), checked_rate(from_rate), to_rate)


def _samples_of(file: BinaryIO) -> Iterator[NDArray[np.float32]]:
    read = getattr(file, "read1", file.read)
    odd, is_first = b"", True
    while content := read(_BLOCK_SAMPLES):
        if is_first and content.startswith(_CONTAINERS):
            raise AudioError("the stream is a file with a header, not samples alone: pass the file by its name.")
        is_first = False
        content = odd + content
        whole = len(content) // 2 * 2
        odd = content[whole:]
        if whole:
            yield np.frombuffer(content[:whole], dtype="<i2").astype(np.float32) / np.float32(32768)
    if odd:
        raise AudioError("the stream ends in the middle of a sample: send 16-bit samples, and all of the last one.")
