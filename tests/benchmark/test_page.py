"""The page stands alone, shows the worst, and lets no text become markup."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from asr_doge.benchmark import ASRDogeBenchmark, BenchmarkConfig
from asr_doge.benchmark.charts import Bar, Column, bar_chart, column_chart
from asr_doge.benchmark.page import render_page
from asr_doge.benchmark.results import BenchmarkResult
from asr_doge.data import read_manifest
from tests import speech


@pytest.fixture(scope="module")
def result(checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> BenchmarkResult:
    folder = tmp_path_factory.mktemp("page")
    checkpoint = speech.brief_checkpoint(checkpoint_folder, folder / "checkpoint")
    corpus = speech.write_corpus(folder / "processed", train=1, dev=1, test=4)
    samples = read_manifest(corpus / "test_manifest.json")
    samples[0] = replace(samples[0], speaker="<b>ann</b>", raw_text="Q&A <script>alert(1)</script>")
    samples[1].audio_path.unlink()
    config = BenchmarkConfig(str(checkpoint), num_speed_runs=1, num_warmup_runs=0, batch_sizes=[2], device="cpu")
    config.output_dir = str(folder / "report")
    return ASRDogeBenchmark(config).run_full_benchmark(samples)


class Outline(HTMLParser):
    """Tags that are open, and the addresses that anything is fetched from."""

    VOID = {"meta"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_one_file_with_everything_in_it(result: BenchmarkResult) -> None:
    page = result.page_path.read_text(encoding="utf-8")
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    assert "script" not in outline.tags
    assert outline.tags.count("audio") == 3  # the fourth recording is gone
    assert outline.tags.count("svg") >= 3
    assert all(address.startswith("data:audio/mpeg;base64,") for address in outline.addresses)
    assert f"{100 * result.accuracy.wer:.2f} %" in page
    assert "1 recording could not be read" in page
    assert str(result.samples[1].audio_path) in page


def test_texts_are_shown_not_obeyed(result: BenchmarkResult) -> None:
    page = render_page(result)
    assert "&lt;b&gt;ann&lt;/b&gt;" in page
    assert "<b>ann</b>" not in page
    assert "qa scriptalert" in re.sub(r"</?(del|ins)>", "", page)


def test_recordings_stay_at_home_if_wanted(result: BenchmarkResult) -> None:
    private = replace(result, config=dict(result.config) | {"embed_audio": False})
    assert "data:audio" not in render_page(private)
    few = replace(result, config=dict(result.config) | {"num_worst": 1})
    assert render_page(few).count("data:audio") == 1


def test_a_part_without_speed_has_a_page_too(result: BenchmarkResult) -> None:
    page = render_page(replace(result, speed=None, memory=None))
    assert "Where the time goes" not in page
    assert "Word error rate by length" in page


def numbers(drawing: str, attribute: str) -> list[float]:
    return [float(value) for value in re.findall(rf'<rect[^>]* {attribute}="([\d.]+)"', drawing)]


def test_columns_are_as_high_as_their_values() -> None:
    drawing = column_chart(
        [Column("a<", 10, 5, 20, "x"), Column("b", 5, 5, 5, "y"), Column("c", 0, 0, 0, "z")], "%", "t"
    )
    heights = numbers(drawing, "height")
    assert heights == pytest.approx([heights[0], heights[0] / 2, 0.0], abs=0.2)
    assert "a&lt;" in drawing
    assert column_chart([Column("none", 0, 0, 0, "")], "%", "t").count("<rect") == 1


def test_a_waterfall_steps_on() -> None:
    drawing = bar_chart([Bar("a", 0, 3, "3"), Bar("b", 3, 1, "1"), Bar("c", 4, 4, "4")], "t")
    lefts, breadths = numbers(drawing, "x"), numbers(drawing, "width")
    assert lefts[1:] == pytest.approx([lefts[0] + breadths[0], lefts[0] + breadths[0] + breadths[1]], abs=0.2)
    assert breadths[2] == pytest.approx(4 * breadths[1], abs=0.2)
