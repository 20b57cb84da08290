"""`asr-doge listen`: transcribe a microphone until Ctrl-C."""

import queue
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asr_doge.cli.console import note_language
from asr_doge.cli.live import print_live
from asr_doge.decoding.configuration import DecodingConfig
from asr_doge.errors import AudioError, ConfigError
from asr_doge.inference.configuration import ListenConfig
from asr_doge.inference.output import TIMED_FORMATS, parse_formats
from asr_doge.inference.transcription import load

BLOCK_SECONDS = 0.1
TIMEOUT_SECONDS = 5.0
"""A microphone in a silent room still sends samples; one that sends none for this long is disconnected."""


def run(config: ListenConfig) -> int:
    """Run the command; returns the exit code."""
    formats = parse_formats(config.format)
    if len(formats) > 1:
        raise ConfigError(f"--format {config.format}: listen prints one format")
    sounddevice = _sounddevice()
    decoding = DecodingConfig(timestamps="auto" if formats[0] in TIMED_FORMATS else None)
    transcriber = load(config.model, config.device, decoding, language=config.language)
    note_language(transcriber, config.model)
    blocks = microphone_blocks(sounddevice, config.microphone, transcriber.sampling_rate)
    return print_live(blocks, transcriber, formats[0], config.model, path=None)


def microphone_blocks(sounddevice: Any, microphone: str | None, sampling_rate: int) -> Iterator[NDArray[np.float32]]:
    """Samples of a microphone, in endless blocks `[samples]`; each holds all samples since the one before.

    Args:
        sounddevice: the library of that name.
        microphone: its name or a part of it; None is the system's choice.
        sampling_rate: in Hz.

    Raises:
        AudioError: there is no such microphone, it cannot record so, or it is gone.
    """
    name = f"microphone '{microphone}'" if microphone else "the microphone"
    recorded: queue.SimpleQueue[NDArray[np.float32]] = queue.SimpleQueue()

    def keep(samples: NDArray[np.float32], frames: int, time: object, status: object) -> None:
        recorded.put(samples[:, 0].copy())  # the library uses its buffer again

    try:
        with sounddevice.InputStream(
            samplerate=sampling_rate,
            blocksize=round(BLOCK_SECONDS * sampling_rate),
            device=microphone,
            channels=1,
            dtype="float32",
            callback=keep,
        ):
            print("listening; Ctrl-C ends it", file=sys.stderr)
            while True:
                try:
                    blocks = [recorded.get(timeout=TIMEOUT_SECONDS)]
                except queue.Empty:
                    raise AudioError(f"{name} sends nothing any more: plug it in and start again") from None
                blocks += [recorded.get() for _ in range(recorded.qsize())]  # while the model was busy
                yield np.concatenate(blocks)
    except (sounddevice.PortAudioError, ValueError) as error:
        remedy = "choose another" if microphone else "plug one in, or name one with --microphone"
        raise AudioError(f"{name} cannot be used ({' '.join(str(error).split())}): {remedy}") from error


def _sounddevice() -> Any:
    """The library, which is an extra because it needs PortAudio of the system."""
    try:
        import sounddevice
    except ImportError:
        raise ConfigError('listen needs the sounddevice library: pip install "asr-doge[listen]"') from None
    except OSError as error:
        raise ConfigError(f"listen needs PortAudio ({error}): install it, as in apt install libportaudio2") from None
    return sounddevice
