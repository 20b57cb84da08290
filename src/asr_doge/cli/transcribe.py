"""`asr-doge transcribe`: recordings to text."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from asr_doge.audio.reading import find_audio_files
from asr_doge.cli.console import quiet_libraries
from asr_doge.errors import AudioError, ConfigError
from asr_doge.inference.configuration import TranscribeConfig
from asr_doge.inference.output import json_document, text_line
from asr_doge.inference.results import FailedTranscription, Transcription
from asr_doge.inference.transcription import Transcriber
from asr_doge.models import load_model


def run(config: TranscribeConfig) -> int:
    """Run the verb; returns 2 if a recording could not be transcribed."""
    if not config.files:
        raise ConfigError("nothing to transcribe: give files or folders, as in asr-doge transcribe recording.wav")
    if config.batch_size < 1 or config.num_beams < 1:
        raise ConfigError("--batch_size and --num_beams must be at least 1")
    quiet_libraries()
    sources = _expand(config.files)
    loaded = load_model(config.model, device=config.device, quantization=config.quantization)
    transcriber = Transcriber(loaded, config.batch_size, config.num_beams)
    results: list[Transcription | FailedTranscription] = []
    failures = 0
    try:
        for result in _with_progress(_transcribe_each(transcriber, sources), len(sources)):
            results.append(result)
            if isinstance(result, FailedTranscription):
                failures += 1
                tqdm.write(f"error: {result.error}", file=sys.stderr)
            elif config.format == "txt":
                tqdm.write(text_line(result, show_path=len(sources) > 1), file=sys.stdout)
    finally:  # what was finished is kept, whatever stops the rest
        if config.format == "json":
            print(json_document(results, config.model))
    if failures:
        print(f"{len(results) - failures} transcribed, {failures} failed", file=sys.stderr)
    return 2 if failures else 0


def _expand(files: Sequence[str]) -> list[Path | FailedTranscription]:
    """Recordings among files and folders, and in its place a failure for every folder without any."""
    sources: list[Path | FailedTranscription] = []
    for path in map(Path, files):
        try:
            sources += find_audio_files(path) if path.is_dir() else [path]
        except AudioError as error:
            sources.append(FailedTranscription(error, path))
    return sources


def _transcribe_each(
    transcriber: Transcriber, sources: Sequence[Path | FailedTranscription]
) -> Iterator[Transcription | FailedTranscription]:
    """Results in the order of the sources."""
    results = transcriber.transcribe_each(source for source in sources if isinstance(source, Path))
    for source in sources:
        yield next(results) if isinstance(source, Path) else source


def _with_progress(
    results: Iterator[Transcription | FailedTranscription], total: int
) -> Iterator[Transcription | FailedTranscription]:
    """A bar on stderr where there is something to wait for and somebody to see it."""
    disable = total < 2 or not sys.stderr.isatty()
    yield from tqdm(results, total=total, unit="file", desc="transcribing", disable=disable, dynamic_ncols=True)
