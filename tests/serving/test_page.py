"""The page in a real browser: a dropped file, a microphone that plays a recording, keyboard, small and dark screens.

Needs Chromium at the usual place (`apt install chromium`) and is skipped where there is none. With SCREENSHOTS set to a
folder, what is seen is kept there.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from playwright.sync_api import Browser, Page, expect, sync_playwright
from scipy.signal import resample_poly

from asr_doge.audio import SAMPLE_RATE
from asr_doge.decoding.configuration import DecodingConfig
from asr_doge.inference.transcription import load
from tests.serving.conftest import KEY, Running, running
from tests.waiting import until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
TIMEOUT_MS = 60_000
WORD = re.compile("one|two|three|four|five|six|seven|eight|nine")
KEEP = """
const create = URL.createObjectURL;
URL.createObjectURL = (blob) => {
  if (blob.type === "audio/wav") window.recorded = blob;
  return create.call(URL, blob);
};
"""
"""The page's policy forbids to fetch what it has recorded, so it is kept when the player gets it."""


@pytest.fixture(scope="module")
def browser(speech: NDArray[np.float32], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Its microphone hears the recording again and again.

    On a busy machine Chromium loses some of it, so tests wait for words, and compare with what the page has recorded.
    """
    microphone = tmp_path_factory.mktemp("microphone") / "speech.wav"
    soundfile.write(microphone, resample_poly(speech, 3, 1), 3 * SAMPLE_RATE, subtype="PCM_16")
    with sync_playwright() as playwright:
        one = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--use-fake-ui-for-media-stream",
                "--use-fake-device-for-media-stream",
                f"--use-file-for-fake-audio-capture={microphone}",
            ],
        )
        yield one
        one.close()


def opened(browser: Browser, served: Running, width: int = 1100, dark: bool = False) -> tuple[Page, list[str]]:
    """The page, and what goes wrong on it: errors, and requests to elsewhere."""
    page = browser.new_page(
        viewport={"width": width, "height": 800}, color_scheme="dark" if dark else "light", accept_downloads=True
    )
    page.add_init_script(KEEP)
    page.set_default_timeout(TIMEOUT_MS)
    expect.set_options(timeout=TIMEOUT_MS)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: faults.extend(_elsewhere(request.url, served)))
    page.goto(served.address)
    return page, faults


def _elsewhere(address: str, served: Running) -> list[str]:
    return [] if served.address in address or address.startswith(("blob:", "data:")) else [address]


def seen(page: Page, name: str) -> None:
    folder = os.environ.get("SCREENSHOTS")
    if folder:
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


@pytest.mark.parametrize(("width", "dark"), [(1100, False), (360, True)])
def test_a_file_becomes_words_that_can_be_played_and_saved(
    browser: Browser, served: Running, recording: Path, file_text: str, width: int, dark: bool
) -> None:
    page, faults = opened(browser, served, width, dark)
    expect(page.locator("#model")).to_have_text("model nano")
    seen(page, f"empty-{width}{'-dark' * dark}")
    page.locator("#file").set_input_files(recording)
    words = page.locator("#transcript button")
    expect(words).to_have_count(len(file_text.split()))
    expect(page.locator("#status")).to_contain_text("5.7 s of sound")
    expect(page.locator("#status")).to_contain_text("model nano")
    assert words.all_inner_texts() == file_text.split()
    words.last.click()
    until(lambda: page.evaluate("document.getElementById('player').currentTime") > 3)
    for form, start in (("srt", "1\n00:00:0"), ("vtt", "WEBVTT"), ("txt", f"{file_text}\n"), ("json", "{")):
        with page.expect_download() as saved:
            page.locator(f"#downloads [data-format={form}]").click()
        assert saved.value.suggested_filename == f"digits.{form}"
        assert Path(saved.value.path()).read_text().startswith(start)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"
    seen(page, f"file-{width}{'-dark' * dark}")
    assert faults == []
    page.close()


def test_speech_becomes_text_while_the_button_is_held(browser: Browser, served: Running, tmp_path: Path) -> None:
    """The final text is the one of a file with the same samples, which the page keeps for its player."""
    page, faults = opened(browser, served)
    talk = page.locator("#talk")
    talk.hover()
    page.mouse.down()
    expect(talk).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#transcript")).to_contain_text(WORD)
    seen(page, "live")
    expect(page.locator("#transcript")).to_contain_text(re.compile(rf"({WORD.pattern}) .*({WORD.pattern})"))
    page.mouse.up()
    words = page.locator("#transcript button")
    expect(words.first).to_be_visible()
    expect(page.locator("#status")).to_contain_text("ms after the end")
    expect(talk).to_have_attribute("aria-pressed", "false")
    recorded = tmp_path / "recorded.wav"
    recorded.write_bytes(bytes(page.evaluate("async () => [...new Uint8Array(await window.recorded.arrayBuffer())]")))
    text = load("nano", device="cpu", decoding=DecodingConfig(cut_at_pauses=True)).transcribe(recorded).text
    assert len(text.split()) >= 2
    assert words.all_inner_texts() == text.split()
    with page.expect_download() as saved:
        page.locator("#downloads [data-format=srt]").click()
    assert text.split()[0] in Path(saved.value.path()).read_text()
    seen(page, "spoken")
    assert faults == []
    page.close()


def test_the_keyboard_is_enough(browser: Browser, served: Running) -> None:
    """A short press starts, the next one stops."""
    page, faults = opened(browser, served)
    reached = []
    for _ in range(4):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    assert reached[:3] == ["file", "talk", "hotwords"]
    page.locator("#talk").focus()
    page.keyboard.press("Space")
    expect(page.locator("#talk")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#transcript")).to_contain_text(WORD)
    page.keyboard.press("Space")
    expect(page.locator("#transcript button").first).to_be_visible()
    assert faults == []
    page.close()


def test_what_is_no_recording_is_said_plainly(browser: Browser, served: Running, tmp_path: Path) -> None:
    page, faults = opened(browser, served)
    (tmp_path / "notes.txt").write_text("no sound")
    page.locator("#file").set_input_files(tmp_path / "notes.txt")
    expect(page.locator("#status")).to_contain_text("notes.txt is not audio")
    expect(page.locator("#status")).to_have_class("quiet error")
    seen(page, "refused")
    assert faults == []
    page.close()


def test_the_page_asks_for_the_key(browser: Browser, recording: Path, file_text: str) -> None:
    with running(api_key=KEY) as locked:
        page, _ = opened(browser, locked)
        page.locator("#file").set_input_files(recording)
        expect(page.locator("#status")).to_contain_text("API key")
        page.locator("#key").fill(KEY)
        page.locator("#file").set_input_files(recording)
        expect(page.locator("#transcript button")).to_have_count(len(file_text.split()))
        page.locator("#talk").focus()
        page.keyboard.press("Space")
        expect(page.locator("#transcript")).to_contain_text(WORD)
        page.close()
