"""The prompt for a language, whichever way it is called."""

import pytest

from asr_doge.text.prompt import fill_prompt

TEMPLATE = "transcribe the following {language} audio: "


@pytest.mark.parametrize("name", ["de", "DE", "de-CH", "de_AT", "german", "German"])
def test_a_language_has_one_prompt(name: str) -> None:
    assert fill_prompt(TEMPLATE, name) == "transcribe the following german audio: "


@pytest.mark.parametrize("name", [None, ""])
def test_a_language_that_is_not_known_is_not_named(name: str | None) -> None:
    assert fill_prompt(TEMPLATE, name) == "transcribe the following audio: "


def test_a_language_without_a_name_goes_by_its_code() -> None:
    assert fill_prompt("{language}: ", "tlh") == "tlh: "


def test_a_template_without_a_place_is_the_prompt() -> None:
    assert fill_prompt("transcribe the following audio: ", "de") == "transcribe the following audio: "
