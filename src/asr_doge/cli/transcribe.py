"""`asr-doge transcribe`: recordings to text, printed or written to files, or one recording while it arrives.

What imports PyTorch, which takes seconds, is imported where it is used: a mistake in the arguments is told at once.
"""

import errno
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from tqdm import tqdm

from asr_doge.audio.channels import Channels
from asr_doge.audio.files import check_not_empty
from asr_doge.audio.folders import search_folder
from asr_doge.audio.pcm import pcm_blocks
from asr_doge.audio.reading import audio_duration, count_channels, read_blocks
from asr_doge.cli.console import note_language
from asr_doge.cli.jobs import run_job
from asr_doge.errors import AudioError, ConfigError, DataError
from asr_doge.inference.configuration import TranscribeConfig
from asr_doge.inference.output import (
    TIMED_FORMATS,
    TSV_HEADER,
    Result,
    ctm_names,
    ctm_rows,
    document,
    json_document,
    json_line,
    parse_formats,
    text_line,
    tsv_rows,
)
from asr_doge.inference.results import FailedTranscription, Transcription
from asr_doge.progress import progress_bar
from asr_doge.scaling.configuration import TranscribeJobConfig

if TYPE_CHECKING:
    from asr_doge.inference.output_folder import OutputFolder, State
    from asr_doge.inference.sources import Source, SourceWithOptions
    from asr_doge.inference.transcription import Transcriber

_Config = TypeVar("_Config", bound=TranscribeConfig)
_Given: TypeAlias = "Path | SourceWithOptions | FailedTranscription"
"""A recording, one channel of it, or an error that is known before it is read."""
_CHANNELS: dict[Channels, int | None] = {"mix": None, "left": 0, "right": 1, "each": None}
ONE_RECORDING_FORMATS = ("srt", "vtt", "textgrid")
"""Formats whose files hold one recording each."""
_NOTHING_CAN_BE_WRITTEN = frozenset([errno.ENOSPC, errno.EROFS, errno.EIO, getattr(errno, "EDQUOT", errno.ENOSPC)])
"""Errors of a disk rather than of a file name: no other file can be written either."""


def run(config: TranscribeJobConfig) -> int:
    """Run the command; returns 2 if a recording could not be transcribed."""
    if config.is_job:
        return run_job(_with_precision(config))
    formats = _check(config)
    if config.timestamps is None and TIMED_FORMATS.intersection(formats):
        config = replace(config, timestamps="auto")
    if config.stream:
        return _stream(_with_precision(config), formats[0])
    sources, names = _expand(config.files)
    if not all(isinstance(source, FailedTranscription) for source in sources):
        config = _with_precision(config)
    if config.channels == "each":
        sources = list(_each_channel(sources))
    folder = _output_folder(config, formats, names)
    if folder is None and formats[0] in ONE_RECORDING_FORMATS and len(sources) > 1:
        raise ConfigError(f"--format {formats[0]} holds one recording, and there are {len(sources)}: add --output_dir")
    notes: list[str] = []
    if folder is not None:
        sources, notes = _wanted(folder, sources, config)
    sink = _Files(folder) if folder is not None else _Printer(formats[0], config.model, len(sources) > 1, names)
    transcribed = failed = incomplete = 0
    try:
        for given in _transcribe_each(config, sources):
            result = sink.add(given)
            if isinstance(result, FailedTranscription):
                failed += 1
                tqdm.write(f"error: {result.error}", file=sys.stderr)
                continue
            transcribed += 1
            for note in result.notes:
                tqdm.write(f"note: {note}", file=sys.stderr)
            if result.incomplete is not None:
                incomplete += 1
                tqdm.write(f"error: {result.incomplete} What is there was transcribed.", file=sys.stderr)
    except KeyboardInterrupt:
        if folder is not None:
            print(f"\n{transcribed} transcribed; the same command goes on from here", file=sys.stderr)
        raise
    finally:  # what was finished is kept, whatever stops the rest
        sink.close()
    for note in notes:
        print(note, file=sys.stderr)
    if failed or incomplete or folder is not None:
        of_them = f" ({incomplete} of them incomplete)" if incomplete else ""
        print(f"{transcribed} transcribed{of_them}, {failed} failed", file=sys.stderr)
    return 2 if failed or incomplete else 0


def _check(config: TranscribeConfig) -> list[str]:
    """Check that the settings fit together; returns the formats."""
    if not config.files:
        raise ConfigError("nothing to transcribe: give files or folders, as in asr-doge transcribe recording.wav")
    if config.batch_size < 1:
        raise ConfigError("--batch_size must be at least 1")
    if config.output_dir == "":
        raise ConfigError("--output_dir is empty: name a folder, or leave it out")
    config.check()
    if config.format == "parquet":
        raise ConfigError("--format parquet is a format of shards: add --engine local or --engine ray")
    formats = parse_formats(config.format)
    if len(formats) > 1 and config.output_dir is None:
        raise ConfigError(f"--format {config.format}: several formats need --output_dir")
    if config.stream and len(config.files) > 1:
        raise ConfigError(f"--stream takes one recording, or - for standard input, not {len(config.files)}")
    if config.stream and config.channels == "each":
        raise ConfigError("--stream takes one channel: choose --channels mix, left or right")
    if config.stream and config.output_dir is not None:
        raise ConfigError("--stream prints: leave --output_dir out, and send the output to a file")
    if config.stream and config.text == "written":
        raise ConfigError("--text written needs the whole text, which a stream never has: leave one of them out")
    if config.stream_rate != TranscribeConfig.stream_rate and not (config.stream and "-" in config.files):
        raise ConfigError("--stream_rate is of samples from standard input, as in --stream -: files state their own")
    if not config.stream and "-" in config.files:
        raise ConfigError("- is standard input, which needs --stream (a file of this name is ./-)")
    return formats


def _stream(config: TranscribeConfig, output_format: str) -> int:
    """Transcribe standard input, or a file as if it were arriving now."""
    from asr_doge.cli.live import print_live

    (name,) = config.files
    transcriber = _load(config)
    rate = transcriber.sampling_rate
    if name == "-" and sys.stdin is None:
        raise ConfigError("--stream -: standard input is closed: send samples to it, or name a file")
    blocks = (
        pcm_blocks(sys.stdin.buffer, config.stream_rate, rate)
        if name == "-"
        else read_blocks(name, rate, _CHANNELS[config.channels], _print_note)
    )
    return print_live(blocks, transcriber, output_format, config.model, None if name == "-" else Path(name))


def _with_precision(config: _Config) -> _Config:
    """Replace `auto` by the precision it stands for, once for all workers, since texts depend on it."""
    if config.dtype != "auto":
        return config
    from asr_doge.models.precision import choose_precision

    precision = choose_precision(config.dtype, config.quantization, config.device)
    print(precision, file=sys.stderr)
    return replace(config, dtype=precision.dtype, quantization=precision.quantization)


def _load(config: TranscribeConfig) -> "Transcriber":
    from asr_doge.inference.configured import load_configured

    transcriber = load_configured(config)
    note_language(transcriber, config.model)
    return transcriber


def _print_note(note: str) -> None:
    tqdm.write(f"note: {note}", file=sys.stderr)


def _expand(files: Sequence[str]) -> tuple[list[_Given], dict[Path, Path]]:
    """The recordings that the arguments name; a folder without any gives a failure in its place.

    Also each recording's path within an output folder: its path within the folder it was found in.
    """
    sources: list[_Given] = []
    names: dict[Path, Path] = {}
    for name in files:
        path = Path(name)
        if not name:  # a variable of a shell that is not set
            sources.append(
                FailedTranscription(AudioError("an argument is empty: name a recording, or . for this folder"))
            )
            continue
        try:
            is_folder = os.path.isdir(path)  # noqa: PTH112 - False where Path.is_dir raises, as for a name too long
            search = search_folder(path) if is_folder else None
            if search is None:
                check_not_empty(path)
        except AudioError as error:
            sources.append(FailedTranscription(error, path))
            continue
        if search is not None and search.note is not None:
            _print_note(search.note)
        found = {file: file.relative_to(path) for file in search.paths} if search else {path: Path(path.name)}
        sources += found
        names |= found
    return sources, names


def _output_folder(config: TranscribeConfig, formats: Sequence[str], names: dict[Path, Path]) -> "OutputFolder | None":
    """The output folder, if one is wanted; its journal stores all settings that a text depends on."""
    if config.output_dir is None:
        return None
    from asr_doge.inference.output_folder import OutputFolder

    folder = Path(config.output_dir)
    return OutputFolder(folder, formats, config.model, names, config.text_settings(), overwrite=config.overwrite)


def _wanted(
    folder: "OutputFolder", sources: Sequence[_Given], config: TranscribeConfig
) -> tuple[list[_Given], list[str]]:
    """The recordings to transcribe, each once, and notes on those that are left out."""
    by_place = {_place(source): source for source in reversed(sources)}
    each = list(by_place.values())[::-1]
    states = Counter(folder.state(*_file_of(source)) for source in each if not isinstance(source, FailedTranscription))
    wanted = [
        source for source in each if isinstance(source, FailedTranscription) or not folder.is_done(*_file_of(source))
    ]
    if config.overwrite:
        return wanted, []
    place = config.output_dir
    notes: dict[State, str] = {
        "done": f"already in {place}, left as they are; --overwrite makes them anew",
        "foreign": f"in {place} made by something else, left as they are; --overwrite replaces them",
        "changed": f"in {place} were of another recording, model or settings, and are made anew",
    }
    return wanted, [f"{states[state]} {note}" for state, note in notes.items() if states[state]]


def _file_of(source: "Path | SourceWithOptions") -> tuple[Path, int | None]:
    """The file, and which of its channels, from 1."""
    if isinstance(source, Path):
        return source, None
    assert isinstance(source.source, Path)
    return source.source, None if source.channel is None else source.channel + 1


def _place(source: _Given) -> object:
    """A key that is equal for sources that are the same recording and channel."""
    if isinstance(source, FailedTranscription):
        return source
    path, channel = _file_of(source)
    return os.path.abspath(path), channel  # noqa: PTH100 - follows no links


def _each_channel(sources: Iterable[_Given]) -> Iterator[_Given]:
    """Every channel of every recording."""
    from asr_doge.inference.sources import SourceWithOptions

    for source in sources:
        if not isinstance(source, Path):
            yield source
            continue
        try:
            count = count_channels(source)
        except AudioError as error:
            yield FailedTranscription(error, source)
            continue
        yield from (SourceWithOptions(source, channel=number) for number in range(count))


def _transcribe_each(config: TranscribeConfig, sources: Sequence[_Given]) -> Iterator[Result]:
    """Results in the order of the sources, with a progress bar if stderr is a terminal."""
    errors = [source for source in sources if isinstance(source, FailedTranscription)]
    if len(errors) == len(sources):  # no model is needed
        yield from errors
        return
    from asr_doge.inference.sources import SourceWithOptions

    transcriber = _load(config)
    channel = _CHANNELS[config.channels]
    readable = [
        replace(source, language=config.language)
        if isinstance(source, SourceWithOptions)
        else SourceWithOptions(source, config.language, channel=channel)
        for source in sources
        if not isinstance(source, FailedTranscription)
    ]
    # Some formats state no duration, and are decoded for it: not where only a line now and then is written.
    total = round(sum(_duration(one.source) for one in readable)) if sys.stderr.isatty() else None
    heard = 0.0
    with progress_bar(
        total=total,
        desc="transcribing",
        unit="s of audio",
        bar_format="{desc} {percentage:3.0f}% |{bar}| {n:.0f} of {total:.0f} {unit} [{elapsed}<{remaining}]",
    ) as bar:

        def advance(seconds: float) -> None:
            nonlocal heard
            heard += seconds
            # Chunks may overlap, and tqdm forgets the total of a bar that goes beyond it.
            bar.update(round(heard if total is None else min(heard, total)) - bar.n)

        results = transcriber.transcribe_each(readable, advance)
        for source in sources:
            yield source if isinstance(source, FailedTranscription) else next(results)


def _duration(path: "Source") -> float:
    """Seconds, for the bar; 0 for a recording that cannot be read, which is reported later."""
    with suppress(AudioError):
        return audio_duration(path) if isinstance(path, Path) else 0.0
    return 0.0


class _Files:
    """Writes results to a folder."""

    def __init__(self, folder: "OutputFolder") -> None:
        self._folder = folder

    def add(self, result: Result) -> Result:
        """Write a result; one that cannot be written is a failure, unless nothing can be written any more."""
        if isinstance(result, Transcription):
            try:
                self._folder.write(result)
            except DataError as error:
                if getattr(error.__cause__, "errno", None) in _NOTHING_CAN_BE_WRITTEN:
                    raise
                return FailedTranscription(error, result.path)
        return result

    def close(self) -> None:
        """Do nothing: every file is already written."""


class _Printer:
    """Prints results as they come, or, where the format is one document, at the end."""

    def __init__(self, output_format: str, model: str, show_path: bool, names: Mapping[Path, Path]) -> None:
        self._format, self._model, self._show_path = output_format, model, show_path
        self._ctm_names = ctm_names(names, names) if output_format == "ctm" else {}
        self._results: list[Result] = []
        if output_format == "tsv":
            print(TSV_HEADER)

    def add(self, result: Result) -> Result:
        """Print a result, or keep it to be printed."""
        for line in self._lines(result):
            tqdm.write(line, file=sys.stdout)
        if self._format == "json":
            self._results.append(result)
        return result

    def _lines(self, result: Result) -> list[str]:
        if self._format == "jsonl":
            return [json_line(result, self._model)]
        if isinstance(result, FailedTranscription) or self._format == "json":
            return []
        if self._format == "txt":
            return [text_line(result, self._show_path)]
        if self._format == "tsv":
            return tsv_rows(result)
        if self._format == "ctm":
            return ctm_rows(result, self._ctm_names.get(result.path) if result.path else None)
        return [document(result, self._format, self._model).rstrip("\n")]

    def close(self) -> None:
        if self._format == "json":
            print(json_document(self._results, self._model))
