"""Read any recording as one mono waveform, or block by block.

Promises: whatever the file's format, rate and channels, the result is float32 `[samples]` at the wanted rate, finite
and not empty; a bad file gives one `AudioError` line that names it and the remedy. Block by block, memory does not grow
with the length of the recording. It does not know features, transcripts or manifests. What it cannot tell: an Ogg file
cut at its end looks like a shorter whole one, as its header states no length, and so do W64 and RF64; and a header that
states a wrong rate which a recording could have is believed.

soundfile (libsndfile) reads the common formats; PyAV (FFmpeg) reads the others, such as the sound of a video.
"""

import os
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import ArrayLike, NDArray

from asr_doge.audio.resampling import SAMPLE_RATE, resample, resample_blocks
from asr_doge.errors import AudioError

# soundfile and av are imported where used: they load large libraries, which `asr-doge --help` should not wait for.
if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from soundfile import SoundFile

AUDIO_EXTENSIONS = frozenset(
    [
        *(".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc", ".au", ".caf", ".w64", ".sph"),
        *(".m4a", ".m4b", ".aac", ".wma", ".amr", ".wv", ".mka"),
        *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".flv", ".ogv", ".mpg", ".mpeg", ".3gp"),  # videos
    ]
)
"""Lower-case endings of the files that `find_audio_files` picks up; `read_audio` itself looks at the content only."""

# FFmpeg also opens playlists, image sequences and scripts that name other files or addresses. A recording handed in by
# a stranger must not make us read those, so only containers that hold their own sound are allowed.
_FFMPEG_FORMATS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dts,eac3,flac,flv,matroska,mov,mp3,mpeg,mpegts,nistsphere,ogg,tta,w64,wav,wv"
)
_BLOCK_SAMPLES = 1 << 16
_BELIEVABLE_RATES = range(1_000, 1_000_001)
_LARGEST_FLOAT = 256.0  # generous to hot float recordings, far below unscaled 16-bit values
# A recorder that writes to a pipe cannot know the length, and states one of the largest numbers instead.
_UNKNOWN_BYTES = 0x7FFF0000
MINIMUM_SECONDS = 0.1
"""Shorter than any word: such a recording is a mistake, and gets told so."""
_UNKNOWN_FRAMES = 1 << 62
# Headers may round, and encoders count a start-up delay that decoders drop (most in AAC at low rates).
_SOUNDFILE_SHORTFALL_SECONDS = 0.1
_FFMPEG_SHORTFALL_SECONDS = 0.5


def read_audio(path: str | os.PathLike[str], sampling_rate: int = SAMPLE_RATE) -> NDArray[np.float32]:
    """Read a recording, or the sound of a video, as mono.

    Args:
        path: the file; its content decides how it is decoded, not its ending.
        sampling_rate: wanted rate, in Hz.

    Returns:
        `[samples]`, float32, the mean of the channels, full scale at 1.

    Raises:
        AudioError: the file is missing, unreadable, no audio, truncated, corrupt, empty, or holds NaN.
    """
    return _gather(read_blocks(path, sampling_rate))


def read_clip(
    path: str | os.PathLike[str], sampling_rate: int = SAMPLE_RATE, longest: int | None = None
) -> NDArray[np.float32]:
    """Read a recording that an encoder is to hear whole, in training from its audio and from its features alike.

    Args:
        path, sampling_rate: as in `read_audio`.
        longest: samples that the encoder reads at once, if it would cut what is longer.

    Raises:
        AudioError: as in `read_audio`; or it is shorter than `MINIMUM_SECONDS`, or longer than `longest`.
    """
    waveform = read_audio(path, sampling_rate)
    check_long_enough(len(waveform), sampling_rate, str(path))
    if longest is not None and len(waveform) > longest:
        raise AudioError(
            f"{path} is {len(waveform) / sampling_rate:.1f} s long: this encoder reads at most"
            f" {longest / sampling_rate:.0f} s at once"
        )
    return waveform


def check_long_enough(samples: int, sampling_rate: int, name: str) -> None:
    """Refuse a recording in which no word can be.

    Raises:
        AudioError: it is shorter than `MINIMUM_SECONDS`.
    """
    seconds = samples / sampling_rate
    if seconds < MINIMUM_SECONDS:
        raise AudioError(
            f"{name} is {1000 * seconds:.0f} ms long: too short to hold a word"
            f" (at least {1000 * MINIMUM_SECONDS:.0f} ms)"
        )


def read_blocks(path: str | os.PathLike[str], sampling_rate: int = SAMPLE_RATE) -> Iterator[NDArray[np.float32]]:
    """Read a recording, or the sound of a video, a few seconds at a time; the blocks join up to `read_audio`.

    Args:
        path, sampling_rate: as in `read_audio`.

    Yields:
        `[samples]`, float32, never empty.

    Raises:
        AudioError: as in `read_audio`; what is wrong further on shows only when it is reached.
    """
    path = Path(path)
    _check_file(path)
    decoded = ((block, rate) for block, rate in _decode(path) if block.size)
    first = next(decoded, None)
    if first is None:
        raise AudioError(f"{path} holds no samples: record or export it again.")
    rate = first[1]
    if rate not in _BELIEVABLE_RATES:
        raise AudioError(f"{path} states a sampling rate of {rate} Hz, which no recording has: correct its header.")
    blocks = (_usable(block, str(path)) for block, _ in chain([first], decoded))
    yield from resample_blocks(blocks, rate, sampling_rate)


def pcm_blocks(file: BinaryIO, from_rate: int, to_rate: int = SAMPLE_RATE) -> Iterator[NDArray[np.float32]]:
    """Samples without a header, from a pipe or a file, as they come.

    Args:
        file: 16-bit little-endian mono samples. A buffered reader gives what is there; others are waited for.
        from_rate: their rate, in Hz. Another than `to_rate` delays them by a second or two.
        to_rate: wanted rate, in Hz.

    Yields:
        `[samples]`, float32.

    Raises:
        AudioError: a rate that no recording has, or, after all blocks, an end amid a sample.
    """
    if from_rate not in _BELIEVABLE_RATES:
        raise AudioError(f"a sampling rate of {from_rate} Hz cannot be right: pass the rate that was recorded at")
    yield from resample_blocks(_samples_of(file), from_rate, to_rate)


def _samples_of(file: BinaryIO) -> Iterator[NDArray[np.float32]]:
    read = getattr(file, "read1", file.read)
    odd = b""
    while content := read(_BLOCK_SAMPLES):
        content = odd + content
        whole = len(content) // 2 * 2
        odd = content[whole:]
        if whole:
            yield np.frombuffer(content[:whole], dtype="<i2").astype(np.float32) / np.float32(32768)
    if odd:
        raise AudioError("the stream ends in the middle of a sample: send 16-bit samples, and all of the last one.")


def audio_duration(path: str | os.PathLike[str]) -> float:
    """Length of a recording in seconds, from its header; formats without one are scanned, not decoded.

    Raises:
        AudioError: the file is missing, unreadable, or no audio.
    """
    import soundfile

    path = Path(path)
    _check_file(path)
    try:
        info = soundfile.info(str(path))
    except (soundfile.LibsndfileError, TypeError):  # TypeError: a name ending in .raw
        info = None
    if info is not None and 0 < info.frames < _UNKNOWN_FRAMES:
        return float(info.frames / info.samplerate)
    return _ffmpeg_duration(path)


def prepare_waveform(
    array: ArrayLike, from_rate: int, to_rate: int = SAMPLE_RATE, name: str = "array"
) -> NDArray[np.float32]:
    """Check samples that somebody hands in, and bring them to mono float32 at the wanted rate.

    Args:
        array: `[samples]`, `[channels, samples]` or `[samples, channels]` (the shorter axis is the channels; the first
            if equal): a NumPy array, a torch tensor on any device, or lists. Floats in about [-1, 1]; integers of 8, 16
            or 32 bits are scaled by their range.
        from_rate: rate of `array`, in Hz.
        to_rate: wanted rate, in Hz.
        name: what error messages call the array.

    Returns:
        `[samples]`, float32. It may share memory with `array`.

    Raises:
        AudioError: no samples, NaN or infinite samples, more than two axes, or a type or rate that no audio has.
    """
    if from_rate < 1:
        raise AudioError(f"{name} has a sampling rate of {from_rate} Hz: pass the rate it was recorded at.")
    return resample(_usable(_to_mono(_to_numpy(array, name)), name), from_rate, to_rate)


def find_audio_files(folder: str | os.PathLike[str]) -> list[Path]:
    """List the recordings in a folder and its subfolders, sorted by path; hidden files and folders are passed over.

    Raises:
        AudioError: no such folder, or no recording in it.
    """
    if not Path(folder).is_dir():
        found = "is a file, not a folder" if Path(folder).exists() else "does not exist"
        raise AudioError(f"{folder} {found}: pass a folder of recordings.")
    files = []
    for parent, subfolders, names in os.walk(folder):
        subfolders[:] = [subfolder for subfolder in subfolders if not subfolder.startswith(".")]
        # "._talk.wav" and its like are macOS's notes about talk.wav, and hold no sound.
        visible = (Path(parent, name) for name in names if not name.startswith("."))
        files += [path for path in visible if path.suffix.lower() in AUDIO_EXTENSIONS]
    if not files:
        raise AudioError(f"{folder} holds no recordings: supported endings are {' '.join(sorted(AUDIO_EXTENSIONS))}.")
    return sorted(files)


def _check_file(path: Path) -> None:
    """Sort out what has nothing to do with audio, where the decoders' own messages are cryptic."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        printable = str(path).encode(errors="backslashreplace").decode()
        raise AudioError(f"{printable} has a name that is not UTF-8, which no decoder opens: rename it.") from None
    try:
        if path.is_dir():
            raise AudioError(f"{path} is a folder: pass a recording, or list its recordings with `find_audio_files`.")
        with path.open("rb") as file:
            first_byte = file.read(1)
    except FileNotFoundError:
        raise AudioError(f"{path} does not exist: check the path.") from None
    except PermissionError:
        raise AudioError(f"{path} may not be read (permission denied): change its permissions.") from None
    except OSError as error:
        raise AudioError(f"{path} cannot be opened ({error.strerror}): check the path and the disk.") from None
    if not first_byte:
        raise AudioError(f"{path} is empty (0 bytes): re-copy it.")


def _broken(path: Path, finding: str) -> AudioError:
    return AudioError(f"{path} is truncated or corrupt: {finding}; re-copy or re-encode it.")


def _check_length(path: Path, found: float, promised: float, tolerance: float) -> None:
    """Compare what was decoded with what the header promises, all in seconds."""
    if found < promised - tolerance:
        raise _broken(path, f"its header promises {promised:.2f} s, but it holds {found:.2f} s")


def _usable(mono: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    """The samples themselves, if sound can have them."""
    # min and max carry NaN and infinity through, without a temporary as long as the recording.
    low, high = float(mono.min()), float(mono.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise AudioError(f"{name} contains NaN or infinite samples: export it again.")
    if max(-low, high) > _LARGEST_FLOAT:
        raise AudioError(f"{name} has floating-point samples up to {max(-low, high):.0f}: scale them to [-1, 1].")
    return mono


def _decode(path: Path) -> Iterator[tuple[NDArray[np.float32], int]]:
    """Mono blocks `[samples]`, each with its rate in Hz. What libsndfile gives up on, FFmpeg decides."""
    import soundfile

    done = 0
    try:
        with soundfile.SoundFile(str(path)) as file:
            if file.frames:  # else a WAV of a recorder that never came to write the length
                for block in _soundfile_blocks(file):
                    done += block.size
                    yield block, file.samplerate
                if file.frames < _UNKNOWN_FRAMES:
                    promised = max(file.frames / file.samplerate, _promised_seconds(file))
                    _check_length(path, done / file.samplerate, promised, _SOUNDFILE_SHORTFALL_SECONDS)
                return
    except (soundfile.LibsndfileError, TypeError):  # TypeError: a name ending in .raw
        pass
    for block, rate in _decode_with_ffmpeg(path):
        yield block[done:], rate
        done = max(done - block.size, 0)


def _soundfile_blocks(file: "SoundFile") -> Iterator[NDArray[np.float32]]:
    while True:
        block = file.read(_BLOCK_SAMPLES, dtype="float32", always_2d=True)
        if not len(block):
            return
        yield block.mean(axis=1)


def _promised_seconds(file: "SoundFile") -> float:
    """Length in a WAV, AIFF or AU header that is wrong, else 0: libsndfile believes the file size, and only logs it."""
    log = re.search(r"^\s*(?:data|SSND|Data Size) *: (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
    if log is None or int(log[1]) >= _UNKNOWN_BYTES or int(log[2]) == 0:
        return 0.0
    return float(file.frames / file.samplerate * int(log[1]) / int(log[2]))


def _gather(blocks: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Join blocks into `[samples]` in one buffer that grows in place, so that a long recording is not held twice."""
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


def _open_with_ffmpeg(path: Path) -> "tuple[InputContainer, AudioStream]":
    import av

    try:
        container = av.open(str(path), options={"format_whitelist": _FFMPEG_FORMATS}, metadata_errors="replace")
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise AudioError(f"{path} is not audio that can be decoded ({reason}): convert it to WAV or FLAC.") from None
    stream = container.streams.best("audio")
    if not isinstance(stream, av.AudioStream):
        container.close()
        raise AudioError(f"{path} has no audio track: pass a recording with sound.")
    return container, stream


def _decode_with_ffmpeg(path: Path) -> Iterator[tuple[NDArray[np.float32], int]]:
    import av

    container, stream = _open_with_ffmpeg(path)
    with container:
        done, rate = 0, 1
        try:
            frames = container.decode(stream)
            first = next(frames, None)
            if first is None:
                raise AudioError(f"{path} holds no samples: record or export it again.")
            # The first frame knows the rate: for AAC with spectral band replication the header states half of it.
            rate = first.sample_rate
            to_planes = av.AudioResampler(format="fltp")
            for frame in chain([first], frames, [None]):
                for plane in to_planes.resample(frame):
                    block = plane.to_ndarray().mean(axis=0)
                    done += block.size
                    yield block, rate
        except (av.FFmpegError, ValueError) as error:
            raise _broken(path, getattr(error, "strerror", None) or str(error)) from None
        if stream.duration is not None and stream.time_base is not None and container.format.name != "aac":
            promised = float(stream.duration * stream.time_base)
            _check_length(path, done / rate, promised, _FFMPEG_SHORTFALL_SECONDS)


def _ffmpeg_duration(path: Path) -> float:
    import av

    container, stream = _open_with_ffmpeg(path)
    with container:
        time_base = float(stream.time_base or 0)
        # A bare AAC stream has no header, and FFmpeg's estimate by bit rate can be off by half.
        if stream.duration is not None and container.format.name != "aac":
            return stream.duration * time_base
        try:
            ends = [(packet.pts or 0) + (packet.duration or 0) for packet in container.demux(stream)]
        except av.FFmpegError as error:
            raise _broken(path, error.strerror or str(error)) from None
        return max(ends, default=0) * time_base


def _to_numpy(array: Any, name: str) -> NDArray[Any]:
    if hasattr(array, "detach"):  # a torch tensor, perhaps on a GPU, with a gradient, or in bfloat16, which NumPy lacks
        array = array.detach().cpu()
        array = array.float() if array.is_floating_point() else array
    try:
        samples = np.asarray(array)
    except ValueError:
        raise AudioError(f"{name} has channels of different lengths: pass channels of equal length.") from None
    if samples.ndim not in (1, 2):
        raise AudioError(f"{name} has {samples.ndim} axes: pass [samples] or [channels, samples].")
    if samples.size == 0:
        raise AudioError(f"{name} holds no samples: record or export it again.")
    kind, size = samples.dtype.kind, samples.dtype.itemsize
    # Lists of integers arrive as 64 bits, which says nothing of their scale; guessing it would give silence.
    if kind != "f" and not (kind in "iu" and size <= 4):
        raise AudioError(f"{name} has samples of type {samples.dtype}: pass floats in [-1, 1], or int16.")
    return samples


def _to_mono(samples: NDArray[Any]) -> NDArray[np.float32]:
    """Mean over the channels, full scale at 1: `[samples]` or two axes in, `[samples]` out."""
    with np.errstate(over="ignore", invalid="ignore"):  # infinities are found and named by the caller
        if samples.ndim == 2:
            mono = samples.mean(axis=0 if samples.shape[0] <= samples.shape[1] else 1, dtype=np.float32)
        else:
            mono = np.ascontiguousarray(samples, dtype=np.float32)
    if samples.dtype.kind == "f":
        return mono
    full_scale = np.float32(2.0 ** (8 * samples.dtype.itemsize - 1))
    middle = full_scale if samples.dtype.kind == "u" else np.float32(0.0)
    return np.asarray((mono - middle) / full_scale, dtype=np.float32)
