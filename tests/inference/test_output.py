"""Transcripts that other programs read, checked with those programs' own parsers."""

import html
import io
import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import srt as srt_parser
import webvtt
from hypothesis import given, settings
from hypothesis import strategies as st
from praatio import textgrid as textgrid_parser

from asr_doge.errors import AudioError, ConfigError
from asr_doge.inference import output
from asr_doge.inference.output import (
    FORMATS,
    ctm_names,
    document,
    json_document,
    json_line,
    parse_formats,
    text_line,
)
from asr_doge.inference.results import FailedTranscription, GuardAction, Segment, Transcription, Word
from asr_doge.inference.subtitles import MAX_LINE_CHARACTERS, MAX_SECONDS, subtitle_cues, timed_words

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"

SPOKEN = Transcription("it's “nine” o’clock", 1.23456, Path("a b.wav"))
FAILED = FailedTranscription(AudioError("b.wav is empty"), Path("b.wav"))
LONG = Transcription(
    text='the quick brown fox jumps over the lazy dog and "runs" away & <home> again and again two',
    duration=3723.5,
    path=Path("talks/a long talk.wav"),
    segments=(
        Segment('the quick brown fox jumps over the lazy dog and "runs" away & <home> again and again', 1.0, 9.0),
        Segment("two", 3722.125, 3723.4, (Word("two", 3722.25, 3722.5, 0.9876),)),
    ),
)


UNGUARDED: dict[str, Any] = {"guards": [], "passes": 0}


@st.composite
def transcriptions(draw: st.DrawFn) -> Transcription:
    """Any texts at any times in order, with word times, without, or with both."""
    texts = st.lists(
        st.text(st.characters(codec="utf-8", categories=["L", "P", "N"]), min_size=1, max_size=60), min_size=1
    )
    gaps, lengths = st.floats(0, 5), st.floats(0.02, 12)
    segments, start = [], 0.0
    for _ in range(draw(st.integers(0, 4))):
        start += draw(gaps)
        segment = Segment(" ".join(draw(texts)), start, start + draw(lengths))
        if draw(st.booleans()):
            segment = Segment(segment.text, segment.start, segment.end, timed_words(segment))
        segments.append(segment)
        start = segment.end
    text = " ".join(segment.text for segment in segments)
    return Transcription(text, start + draw(gaps), Path("a.wav"), tuple(segments))


# text and JSON


def test_a_text_is_one_line() -> None:
    assert text_line(SPOKEN, show_path=False) == SPOKEN.text
    assert text_line(SPOKEN, show_path=True) == f"a b.wav\t{SPOKEN.text}"
    broken = Transcription("one\ntwo\r\u2028three", 1.0, Path("a.wav"))
    assert text_line(broken, show_path=True) == "a.wav\tone two three"


def test_json_holds_results_and_failures_in_order() -> None:
    results = json.loads(json_document([SPOKEN, FAILED, LONG, Transcription("", 2.0)], "nano"))
    assert (results["version"], results["model"]) == (1, "nano")
    spoken, failed, long, silent = results["results"]
    assert spoken == {"path": "a b.wav", "duration": 1.235, "text": SPOKEN.text, "segments": []} | UNGUARDED
    assert failed == {"path": "b.wav", "error": "b.wav is empty"}
    assert (silent["path"], silent["text"]) == (None, "")
    assert long["segments"][1] == {
        "text": "two",
        "start": 3722.125,
        "end": 3723.4,
        "words": [{"text": "two", "start": 3722.25, "end": 3722.5, "confidence": 0.988}],
        "alternatives": [],
    }
    guarded = replace(LONG, guards=(GuardAction("silence", 9.0, 20.0),), passes=3)
    (entry,) = json.loads(json_document([guarded], "nano"))["results"]
    assert entry == long | {"guards": [{"guard": "silence", "start": 9.0, "end": 20.0}], "passes": 3}


@settings(max_examples=40)
@given(st.lists(transcriptions() | st.just(FAILED), max_size=3))
def test_json_is_as_its_schema_says(results: list[Any]) -> None:
    schema = json.loads((ROOT / "docs" / "transcription.schema.json").read_text())
    jsonschema.validate(json.loads(json_document(results, "nano")), schema)
    assert schema["properties"]["version"]["const"] == output.SCHEMA_VERSION


def test_json_lines_hold_one_result_each() -> None:
    assert "\n" not in json_line(LONG, "nano")
    both = [json.loads(json_line(result, "nano")) for result in (LONG, FAILED)]
    document_entries = json.loads(json_document([LONG, FAILED], "nano"))["results"]
    assert both == [{"version": 1, "model": "nano"} | entry for entry in document_entries]


# golden files


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "txt"])
def test_files_are_as_they_were(name: str) -> None:
    """A change of format is one for everybody who reads it: mend the golden file only if that is meant."""
    assert document(LONG, name, "nano") == (GOLDEN / f"talk.{name}").read_text(encoding="utf-8")


# subtitles


@given(transcriptions())
def test_subtitles_can_be_read_while_they_are_shown(result: Transcription) -> None:
    cues = subtitle_cues(result.segments)
    for cue in cues:
        assert 1 <= len(cue.lines) <= 2
        assert all(len(" ".join(word.text for word in line)) <= MAX_LINE_CHARACTERS for line in cue.lines)
        assert 0 < cue.end - cue.start <= MAX_SECONDS + 1e-6
    for cue, following in pairwise(cues):
        assert cue.end <= following.start + 1e-9
        assert cue.end - cue.start >= min(1.0, following.start - cue.start) - 1e-9
    shown = "".join(word.text for cue in cues for line in cue.lines for word in line)
    assert shown == "".join(result.text.split())


@settings(max_examples=40)
@given(transcriptions())
def test_srt_is_read_by_others(result: Transcription) -> None:
    cues = subtitle_cues(result.segments)
    parsed = list(srt_parser.parse(document(result, "srt", "nano"), ignore_errors=False))
    assert [subtitle.index for subtitle in parsed] == list(range(1, len(cues) + 1))
    for subtitle, cue in zip(parsed, cues, strict=True):
        assert subtitle.start.total_seconds() == pytest.approx(cue.start, abs=0.0011)
        assert subtitle.end.total_seconds() == pytest.approx(cue.end, abs=0.0011)
        assert subtitle.content.split("\n") == [" ".join(word.text for word in line) for line in cue.lines]


@settings(max_examples=40)
@given(transcriptions())
def test_vtt_is_read_by_others(result: Transcription) -> None:
    cues = subtitle_cues(result.segments)
    parsed = webvtt.from_buffer(io.StringIO(document(result, "vtt", "nano"))).captions
    for caption, cue in zip(parsed, cues, strict=True):
        assert caption.start_in_seconds == pytest.approx(cue.start, abs=1)
        assert [html.unescape(line) for line in caption.text.split("\n")] == [
            " ".join(word.text for word in line) for line in cue.lines
        ]
        stamps = re.findall(r"<(\d\d:\d\d:\d\d\.\d\d\d)>", caption.raw_text)
        assert [caption.start, *stamps, caption.end] == sorted({caption.start, *stamps, caption.end})


def test_where_word_times_are_known_subtitles_follow_them() -> None:
    words = (Word("one", 1.0, 1.4), Word("two", 1.5, 2.0), Word("three", 5.0, 5.5))
    first, second = subtitle_cues([Segment("one two three", 0.5, 6.0, words)])
    assert (first.start, first.end, second.start, second.end) == (1.0, 2.0, 5.0, 6.0)
    text = document(Transcription("one two three", 6.0, segments=(Segment("", 0.5, 6.0, words),)), "vtt", "nano")
    assert "one <00:00:01.500>two" in text


def test_two_lines_are_of_similar_length() -> None:
    (cue,) = subtitle_cues([Segment("nine eight seven six five four three two one zero", 0.0, 6.0)])
    lengths = [len(" ".join(word.text for word in line)) for line in cue.lines]
    assert len(lengths) == 2
    assert abs(lengths[0] - lengths[1]) <= 6


# tables and annotations


@settings(max_examples=40)
@given(transcriptions())
def test_textgrids_are_read_by_others(result: Transcription) -> None:
    path = GOLDEN / ".parsed.TextGrid"
    try:
        path.write_text(document(result, "textgrid", "nano"), encoding="utf-8")
        grid = textgrid_parser.openTextgrid(str(path), includeEmptyIntervals=True, reportingMode="error")
    finally:
        path.unlink(missing_ok=True)
    assert grid.maxTimestamp == pytest.approx(result.duration, abs=0.001)
    labels = [entry.label for entry in grid.getTier("segments").entries if entry.label]
    assert labels == [segment.text for segment in result.segments]
    words = [word.text for segment in result.segments for word in segment.words]
    assert [e.label for e in grid.getTier("words").entries if e.label] == words if words else len(grid.tiers) == 1


@given(transcriptions())
def test_ctm_has_a_word_a_line_in_order(result: Transcription) -> None:
    rows = [row.split(" ") for row in document(result, "ctm", "nano").splitlines()]
    assert [row[4] for row in rows] == result.text.split()
    assert all(row[:2] == ["a", "1"] and float(row[3]) > 0 for row in rows)
    starts = [float(row[2]) for row in rows]
    assert starts == sorted(starts)


def test_tables_keep_their_columns() -> None:
    odd = Transcription("a\tb", 1.0, Path("tab\there \n.wav"), (Segment("a\tb", 0.0, 1.0),))
    header, row = document(odd, "tsv", "nano").splitlines()
    assert (header.split("\t"), row.split("\t")) == (
        ["path", "start", "end", "text"],
        ["tab here .wav", "0.000", "1.000", "a b"],
    )
    assert [row.split(" ")[0] for row in document(odd, "ctm", "nano").splitlines()] == ["tab_here", "tab_here"]


@given(
    st.sets(
        st.lists(
            st.sampled_from(["a", "a b", "a_b", "a.b", ";;", "\u2028", "s1", "s2"]), min_size=1, max_size=3
        ).flatmap(
            lambda parts: st.sampled_from([".wav", ".mp3", ""]).map(
                lambda ending: Path(*parts[:-1], parts[-1] + ending)
            )
        )
    )
)
def test_ctm_keeps_recordings_apart(paths: set[Path]) -> None:
    names = ctm_names(sorted(paths))
    assert names.keys() == paths
    assert len(set(names.values())) == len(paths)
    for path, name in names.items():
        (row,) = output.ctm_rows(Transcription("nine", 1.0, path), name)
        assert row.split() == [name, "1", "0.000", "1.000", "nine"]
        assert not row.startswith(";;")  # which is a comment


def test_ctm_names_are_as_short_as_may_be() -> None:
    paths = [
        Path(path) for path in ("/x/s1/001.wav", "/x/s2/001.wav", "/x/s2/002.wav", "/x/s2/003.wav", "/x/s2/003.mp3")
    ]
    names = ctm_names(paths, {path: path.relative_to("/x") for path in paths})
    assert [names[path] for path in paths] == ["s1/001", "s2/001", "002", "s2/003.wav", "s2/003.mp3"]


@pytest.mark.parametrize("name", list(FORMATS))
def test_silence_and_texts_without_segments_have_files_too(name: str) -> None:
    assert document(Transcription("", 2.0), name, "nano") is not None
    assert "nine" in document(SPOKEN, name, "nano")


def test_formats_are_named_one_by_one() -> None:
    assert parse_formats("srt, json,srt") == ["srt", "json"]
    with pytest.raises(ConfigError, match="--format 'sub' is unknown: choose from txt, json"):
        parse_formats("srt,sub")
