"""Write transcripts as text, tables, subtitles and annotations that other programs read.

Promises: `FORMATS` names every format; `document` writes one recording in any of them, `json_document` many recordings
and failures in one. JSON follows `docs/transcription.schema.json` and states its version. Times are seconds; if word
times are unknown, CTM divides a segment's time among its words, and the other formats show segments.
It does not transcribe, prints nothing, and writes no files (see `asr_doge.inference.output_folder`).
"""

import html
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr_doge.errors import ConfigError
from asr_doge.inference.results import FailedTranscription, Segment, Transcription, Word
from asr_doge.inference.results import Result as Result
from asr_doge.inference.subtitles import Cue, subtitle_cues, timed_words

if TYPE_CHECKING:  # it loads torch
    from asr_doge.inference.stream import StreamUpdate

SCHEMA_VERSION = 1
TSV_HEADER = "path\tstart\tend\ttext"


def text_line(result: Transcription, show_path: bool) -> str:
    """The transcript, preceded by its file's name and a tab if there are several."""
    text = _one_line(result.text)  # a language model may write line breaks
    return f"{_name(result)}\t{text}" if show_path else text


def json_document(results: Sequence[Result], model: str) -> str:
    """All results as one JSON document."""
    entries = [_json_entry(result) for result in results]
    return json.dumps({"version": SCHEMA_VERSION, "model": model, "results": entries}, indent=2, ensure_ascii=False)


def json_line(result: Result, model: str, others: Mapping[str, Any] | None = None) -> str:
    """One result as a line of JSON.

    Args:
        result: the recording.
        model: name of the model.
        others: fields to add, or to put in the place of the result's.
    """
    entry = {"version": SCHEMA_VERSION, "model": model} | _json_entry(result) | dict(others or {})
    return json.dumps(entry, ensure_ascii=False)


def stream_line(update: "StreamUpdate") -> str:
    """A change of a stream as a line of JSON."""
    return json.dumps({"version": SCHEMA_VERSION} | _plain(update), ensure_ascii=False)


def tsv_rows(result: Transcription) -> list[str]:
    """A row for each segment, under `TSV_HEADER`."""
    path = _one_line(_name(result))
    return [f"{path}\t{s.start:.3f}\t{s.end:.3f}\t{_one_line(s.text)}" for s in _segments(result)]


def ctm_names(paths: Iterable[Path], within: Mapping[Path, Path] | None = None) -> dict[Path, str]:
    """Names of recordings in CTM: file names without extension, with as much of the path as distinguishes them.

    Args:
        paths: the recordings.
        within: their paths relative to the folders they were found in, if known.
    """
    candidates = {}
    for path in paths:
        inside = (within or {}).get(path, path)
        forms = (Path(path.stem), without_ending(inside), inside, path)
        candidates[path] = [_ctm_word(form.as_posix()) for form in forms]
    return distinct_names(candidates)


def ctm_rows(result: Transcription, name: str | None = None) -> list[str]:
    """A row for each word, as NIST's scoring tools expect: recording, channel, start, duration, word, confidence.

    Args:
        result: the recording.
        name: its name in CTM, see `ctm_names`; default, its file's name without extension.
    """
    name = name or _ctm_word(result.path.stem if result.path else "audio")
    words = [word for segment in _segments(result) for word in timed_words(segment)]
    return [
        f"{name} {result.channel or 1} {word.start:.3f} {max(word.end - word.start, 0.001):.3f} {_one_line(word.text)}"
        + ("" if word.confidence is None else f" {word.confidence:.3f}")
        for word in words
    ]


def srt(result: Transcription) -> str:
    """SubRip subtitles."""
    blocks = [
        f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n{_cue_text(cue)}\n"
        for number, cue in enumerate(subtitle_cues(_segments(result)), 1)
    ]
    return "\n".join(blocks)


def vtt(result: Transcription) -> str:
    """WebVTT subtitles; if word times are known, each word but a cue's first has its own time."""
    has_word_times = all(segment.words for segment in _segments(result))
    blocks = [
        f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n{_vtt_text(cue, has_word_times)}\n"
        for cue in subtitle_cues(_segments(result))
    ]
    return "\n".join(["WEBVTT\n", *blocks])


def textgrid(result: Transcription) -> str:
    """A Praat TextGrid with a tier of segments and, if word times are known, one of words."""
    segments = _segments(result)
    words = [word for segment in segments for word in segment.words]
    tiers = {"segments": _tiled(segments, result.duration)}
    if words:
        tiers["words"] = _tiled(words, result.duration)
    lines = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "xmin = 0",
        f"xmax = {result.duration:.3f}",
        "tiers? <exists>",
        f"size = {len(tiers)}",
        "item []:",
    ]
    for number, (name, intervals) in enumerate(tiers.items(), 1):
        lines += [
            f"    item [{number}]:",
            '        class = "IntervalTier"',
            f'        name = "{name}"',
            "        xmin = 0",
            f"        xmax = {result.duration:.3f}",
            f"        intervals: size = {len(intervals)}",
        ]
        for index, (start, end, text) in enumerate(intervals, 1):
            quoted = _one_line(text).replace('"', '""')
            lines += [
                f"        intervals [{index}]:",
                f"            xmin = {start:.3f}",
                f"            xmax = {end:.3f}",
                f'            text = "{quoted}"',
            ]
    return "\n".join(lines) + "\n"


def document(result: Transcription, output_format: str, model: str) -> str:
    """A file of one recording.

    Args:
        result: the recording.
        output_format: of `FORMATS`.
        model: name of the model, for JSON.
    """
    return FORMATS[output_format](result, model)


FORMATS: dict[str, Callable[[Transcription, str], str]] = {
    "txt": lambda result, model: text_line(result, show_path=False) + "\n",
    "json": lambda result, model: json_document([result], model) + "\n",
    "jsonl": lambda result, model: json_line(result, model) + "\n",
    "srt": lambda result, model: srt(result),
    "vtt": lambda result, model: vtt(result),
    "tsv": lambda result, model: "\n".join([TSV_HEADER, *tsv_rows(result)]) + "\n",
    "ctm": lambda result, model: "".join(f"{row}\n" for row in ctm_rows(result)),
    "textgrid": lambda result, model: textgrid(result),
}
"""The function that writes a recording in each format; its second argument is the model's name."""
TIMED_FORMATS = frozenset(["srt", "vtt", "tsv", "ctm", "textgrid"])
"""Formats that are of little use without times."""
ENDINGS = {name: f".{name}" for name in FORMATS} | {"textgrid": ".TextGrid"}
"""File extension of each format."""


def parse_formats(text: str) -> list[str]:
    """The formats of a list such as `srt,json`.

    Raises:
        ConfigError: one is not a format.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in FORMATS:
            raise ConfigError(f"--format '{name}' is unknown: choose from {', '.join(FORMATS)}, or several with commas")
    return names


def distinct_names(candidates: Mapping[Path, Sequence[str]]) -> dict[Path, str]:
    """A name of its own for each recording: the first of its candidates that it shares with none, else numbered."""
    names: dict[Path, str] = {}
    pending = list(candidates)
    for level in range(max(map(len, candidates.values()), default=0)):
        proposed = {path: candidates[path][min(level, len(candidates[path]) - 1)] for path in pending}
        uses = Counter([*names.values(), *proposed.values()])
        names |= {path: name for path, name in proposed.items() if uses[name] == 1}
        pending = [path for path in pending if path not in names]
    for path in pending:
        numbered = (f"{candidates[path][-1]}-{number}" for number in count(2))
        names[path] = next(name for name in numbered if name not in names.values())
    return names


def without_ending(name: Path) -> Path:
    """A path without what follows the last dot of its name, if anything is before it."""
    return name.with_suffix("") if name.stem.strip(".") else name


def _ctm_word(text: str) -> str:
    """A name as one field of a row, which must not look like a comment."""
    word = "_".join(text.split()) or "audio"
    return f"_{word}" if word.startswith(";;") else word


def _segments(result: Transcription) -> tuple[Segment, ...]:
    """Those of the result, or one that is all of it."""
    if result.segments or not result.text:
        return result.segments
    return (Segment(result.text, 0.0, result.duration),)


_ONLY_IF_SET = ("channel", "notes", "incomplete")
"""Fields that the JSON of most recordings does not need."""


def _json_entry(result: Result) -> dict[str, Any]:
    if isinstance(result, FailedTranscription):
        return {"path": _plain(result.path), "error": str(result.error)}
    first = {"path": _plain(result.path), "duration": _plain(result.duration), "text": result.text}
    rest = {name: value for name, value in _plain(result).items() if name not in first}
    return first | {name: value for name, value in rest.items() if value or name not in _ONLY_IF_SET}


def _plain(value: Any) -> Any:
    """Dataclasses as dictionaries, times and probabilities to three places, paths as text."""
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(value, 3)
    return str(value) if isinstance(value, Path) else value


def _name(result: Transcription) -> str:
    """The name of a recording, or of one of its channels, in a list."""
    return f"{result.path or ''}" + (f" [channel {result.channel}]" if result.channel else "")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _clock(seconds: float, point: str) -> str:
    """Hours, minutes, seconds and milliseconds: 01:02:03.004."""
    milliseconds = round(1000 * seconds)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds // 1000:02d}{point}{milliseconds % 1000:03d}"


def _cue_text(cue: Cue) -> str:
    return "\n".join(" ".join(word.text for word in line) for line in cue.lines)


def _vtt_text(cue: Cue, has_word_times: bool) -> str:
    """Lines of a cue; a time is written only where it is within the cue and later than the one before."""
    latest = round(1000 * cue.start)
    lines = []
    for line in cue.lines:
        parts = []
        for word in line:
            at = round(1000 * word.start)
            stamp = ""
            if has_word_times and latest < at < round(1000 * cue.end):
                stamp, latest = f"<{_clock(word.start, '.')}>", at
            parts.append(stamp + html.escape(word.text, quote=False))
        lines.append(" ".join(parts))
    return "\n".join(lines)


def _tiled(spans: Sequence[Segment | Word], duration: float) -> list[tuple[float, float, str]]:
    """Intervals of whole milliseconds from 0 to `duration` without gap or overlap, as a tier must have them."""
    end_of_all = round(1000 * duration)
    intervals: list[tuple[int, int, str]] = []
    reached = 0
    for position, span in enumerate(spans):
        rest = len(spans) - position - 1
        start = min(max(round(1000 * span.start), reached), end_of_all - rest - 1)
        end = min(max(round(1000 * span.end), start + 1), end_of_all - rest)
        if start > reached:
            intervals.append((reached, start, ""))
        intervals.append((start, end, span.text))
        reached = end
    if reached < end_of_all:
        intervals.append((reached, end_of_all, ""))
    return [(start / 1000, end / 1000, text) for start, end, text in intervals]
