"""A text in letters that the CTC head does not have: the head's silence and its drafts do not count against it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
import torch

from asr_doge.decoding import DecodingConfig
from asr_doge.decoding.ctc import cannot_spell
from asr_doge.decoding.recognition import Recognition, Recognizer
from asr_doge.models import LoadedModel, assemble_model
from asr_doge.models.encoders.granite_speech import GraniteSpeechEncoder
from tests.models import tiny

CYRILLIC = "мы говорим по-русски, не по-английски"
LATIN = "we speak russian and not english today"
SECONDS = 1.5


@pytest.fixture(scope="module")
def taught(granite_folder: Path, doge_folder: Path) -> dict[str, LoadedModel]:
    """Models that have learned to write one sentence each, whatever they hear."""
    models = {}
    for text in (CYRILLIC, LATIN):
        torch.manual_seed(0)
        loaded = assemble_model(granite_folder, doge_folder, device="cpu", train_language_model="full")
        batch = loaded.processor([tiny.random_waveform(SECONDS)], text=[text])
        trained = [parameter for parameter in loaded.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=0.02)
        for _ in range(60):
            loss = loaded.model.train()(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert loss < 0.05
        loaded.model.eval()
        models[text] = loaded
    return models


@pytest.fixture(params=["blank", "letters"])
def head(request: pytest.FixtureRequest, taught: dict[str, LoadedModel]) -> Iterator[str]:
    """What the CTC heads hear: nothing, or one Latin letter throughout."""
    heads = [cast(GraniteSpeechEncoder, loaded.model.encoder).encoder.out for loaded in taught.values()]
    before = [part.bias.detach().clone() for part in heads]
    with torch.no_grad():
        for part in heads:
            part.bias[0 if request.param == "blank" else ord("e")] += 1000
    yield request.param
    with torch.no_grad():
        for part, bias in zip(heads, before, strict=True):
            part.bias.copy_(bias)


def recognize(loaded: LoadedModel, somebody_speaks: bool, **options: object) -> Recognition:
    recognizer = Recognizer(loaded, DecodingConfig(**options))  # type: ignore[arg-type]
    clip = tiny.random_waveform(SECONDS)
    together = recognizer.recognize([clip, 0.0 * clip], lambda _: somebody_speaks)
    assert together[1].text == ""
    return together[0]


@pytest.mark.parametrize("decoder", ["draft", "greedy", "beam"])
def test_a_text_in_another_script_is_whole(taught: dict[str, LoadedModel], head: str, decoder: str) -> None:
    found = recognize(taught[CYRILLIC], True, decoder=decoder, timestamps="word")
    assert found.text == CYRILLIC
    assert len(CYRILLIC.encode()) > 2 * 16  # tokens, which the draft would have bounded
    assert found.guards == ()
    times = [(word.start, word.end) for word in found.words]
    assert [word.text for word in found.words] == CYRILLIC.split()
    assert all(end > start for start, end in times)
    assert found.word_bounds is not None
    assert 0 <= found.word_bounds[0] < found.word_bounds[1] <= SECONDS


def test_a_text_in_the_heads_own_letters_is_not(taught: dict[str, LoadedModel], head: str) -> None:
    found = recognize(taught[LATIN], True)
    if head == "blank":  # it would have heard something
        assert (found.text, found.guards) == ("", ("silence",))
    else:
        assert LATIN.startswith(found.text)
        assert found.guards == ("length",)
    unguarded = Recognizer(taught[LATIN], DecodingConfig(guard_silence=False, guard_length=False))
    assert unguarded.recognize([tiny.random_waveform(SECONDS)])[0].text == LATIN


@pytest.mark.parametrize("detector", [lambda clip: False, None], ids=["nobody speaks", "nobody listens"])
def test_without_a_voice_a_blank_head_is_believed(
    taught: dict[str, LoadedModel], head: str, detector: Callable[[object], bool] | None
) -> None:
    (found,) = Recognizer(taught[CYRILLIC], DecodingConfig()).recognize([tiny.random_waveform(SECONDS)], detector)
    assert found.guards == (("silence",) if head == "blank" else ())
    assert found.text == ("" if head == "blank" else CYRILLIC)


@pytest.mark.parametrize(
    ("text", "beyond"),
    [
        (CYRILLIC, True),
        (LATIN, False),
        ("Ünïcode of latin 1", False),
        ("東京タワー", True),
        ("", False),
        ("…!?", False),
        ("windows 11 работает", False),
        ("ок и всё", True),
        ("7 8 9", False),
    ],
)
def test_letters_are_counted(taught: dict[str, LoadedModel], text: str, beyond: bool) -> None:
    assert cannot_spell(taught[LATIN].model.encoder, text) == beyond
