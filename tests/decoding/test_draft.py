"""Equality 4: verifying a draft gives exactly the greedy text, whatever the draft, in fewer passes if it is good."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_doge.decoding.draft import Draft, Verifier
from asr_doge.models import LoadedModel, assemble_model
from asr_doge.models.encoders import SpeechEncoderOutput, length_mask
from tests.models import tiny

LENGTHS = (9, 3, 6, 12)
"""Speech embeddings of the four rows of every batch."""
LIMIT = 20


def inputs(size: int = tiny.SPEECH_SIZE) -> SpeechEncoderOutput:
    clips = tiny.random_clips(LENGTHS, size, seed=3)
    embeddings, mask = tiny.padded(clips)
    return SpeechEncoderOutput(embeddings, mask.sum(dim=1))


def greedy(
    loaded: LoadedModel, speech: SpeechEncoderOutput, eos: Sequence[int], prompt_ids: torch.Tensor | None = None
) -> list[list[int]]:
    """What transformers' own greedy search writes, up to and with the end of each row."""
    mask = length_mask(speech.speech_lengths, speech.speech_embeddings.shape[1])
    rows = loaded.model.generate(
        speech_embeddings=speech.speech_embeddings,
        attention_mask=mask,
        max_new_tokens=LIMIT,
        prompt_ids=prompt_ids,
        eos_token_id=list(eos),
        pad_token_id=2,
    ).tolist()
    ends = [min((row.index(token) for token in eos if token in row), default=len(row)) for row in rows]
    return [row[: end + 1] for row, end in zip(rows, ends, strict=True)]


def verifier(loaded: LoadedModel, eos: Sequence[int], **options: float | int) -> Verifier:
    return Verifier(
        loaded.model,
        frozenset(eos),
        loaded.processor.tokenizer.convert_ids_to_tokens,
        **options,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def ends(assembled: LoadedModel) -> list[int]:
    """End-of-sequence tokens: the real one, and one by which rows of random weights end here and there."""
    texts = greedy(assembled, inputs(), [1])
    return [1, texts[0][7]]


@pytest.fixture(scope="module")
def texts(assembled: LoadedModel, ends: list[int]) -> list[list[int]]:
    return greedy(assembled, inputs(), ends)


def test_the_texts_end_in_different_places(texts: list[list[int]]) -> None:
    """Else the tests below could not see much."""
    assert len({len(text) for text in texts}) > 1
    assert len(set(texts[-1])) > 3


TOKEN = st.integers(0, 300)


@st.composite
def spoilt(draw: st.DrawFn, texts: Sequence[Sequence[int]]) -> list[int]:
    """A draft that owes something to one of the texts, or nothing."""
    text = list(texts[draw(st.integers(0, len(texts) - 1))])
    kind = draw(st.sampled_from(["as it is", "empty", "random", "truncated", "repeated", "edited", "too long"]))
    if kind == "empty":
        return []
    if kind == "random":
        return draw(st.lists(TOKEN, max_size=30))
    if kind == "truncated":
        return text[draw(st.integers(0, len(text))) : draw(st.integers(0, len(text)))]
    if kind == "repeated":
        return text[:4] * draw(st.integers(2, 6))
    if kind == "too long":
        return text + draw(st.lists(TOKEN, min_size=1, max_size=40))
    if kind == "edited":
        for _ in range(draw(st.integers(1, 4))):
            place = draw(st.integers(0, max(len(text) - 1, 0)))
            text[place : place + draw(st.integers(0, 2))] = draw(st.lists(TOKEN, max_size=2))
    return text


@settings(max_examples=40)
@given(data=st.data())
def test_any_draft_gives_the_greedy_text(
    assembled: LoadedModel, ends: list[int], texts: list[list[int]], data: st.DataObject
) -> None:
    drafts = [data.draw(spoilt(texts)) for _ in LENGTHS]
    window = data.draw(st.integers(1, 25))
    decoded = verifier(assembled, ends, proposal_tokens=window).decode(inputs(), drafts, [LIMIT] * 4)
    assert [row.tokens for row in decoded] == texts
    for row in decoded:
        assert 1 <= row.passes <= len(row.tokens)
        assert len(row.log_probs) == len(row.tokens)


@settings(max_examples=15)
@given(data=st.data(), limits=st.lists(st.integers(1, LIMIT), min_size=4, max_size=4))
def test_limits_cut_each_row_where_it_would_be_cut_alone(
    assembled: LoadedModel, ends: list[int], texts: list[list[int]], data: st.DataObject, limits: list[int]
) -> None:
    drafts = [data.draw(spoilt(texts)) for _ in LENGTHS]
    decoded = verifier(assembled, ends).decode(inputs(), drafts, limits)
    assert [row.tokens for row in decoded] == [text[:limit] for text, limit in zip(texts, limits, strict=True)]


def test_rows_with_prompts_of_their_own(assembled: LoadedModel, texts: list[list[int]]) -> None:
    """As where each names another language; greedy search is held to rows of such batches in `test_modeling`."""
    speech = inputs()
    prompts = torch.tensor([[0, 7, 8, 9], [0, 30, -100, -100], [0, 5, 6, -100], [0, -100, -100, -100]])
    wanted = greedy(assembled, speech, [1], prompt_ids=prompts)
    assert wanted != greedy(assembled, speech, [1])
    drafts = [[*text[:3], 70, *text[4:]] for text in wanted]
    decoded = verifier(assembled, [1]).decode(speech, drafts, [LIMIT] * 4, prompt_ids=prompts)
    assert [row.tokens for row in decoded] == wanted


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_other_language_models_too(granite_folder: Path, tmp_path: Path, family: str) -> None:
    """With other attention and other positions; drafts half right."""
    model = {"llama": tiny.llama_model, "gpt2": tiny.gpt2_model}[family](len(tiny.tokenizer()))
    tiny.save_language_model(model, tmp_path / family)
    loaded = assemble_model(granite_folder, tmp_path / family, device="cpu", dtype=torch.float64)
    tiny.randomize(loaded.model.adapter, seed=1)
    ends = [1, greedy(loaded, inputs(), [1])[0][7]]
    texts = greedy(loaded, inputs(), ends)
    drafts = [[*text[:3], 70, *text[4:9], 80, 90, *text[9:]] for text in texts]
    decoded = verifier(loaded, ends).decode(inputs(), drafts, [LIMIT] * 4)
    assert [row.tokens for row in decoded] == texts


def test_a_right_draft_takes_one_pass(assembled: LoadedModel, ends: list[int], texts: list[list[int]]) -> None:
    drafts = [text[:-1] for text in texts]
    decoded = verifier(assembled, ends).decode(inputs(), drafts, [LIMIT] * 4)
    assert [row.passes for row in decoded] == [1, 1, 1, 1]


@pytest.mark.parametrize("kind", ["another", "one too many", "missing"])
def test_a_wrong_token_takes_a_pass_more(
    assembled: LoadedModel, ends: list[int], texts: list[list[int]], kind: str
) -> None:
    wrong = next(token for token in range(100, 300) if not any(token in text for text in texts))
    spoil = {
        "another": lambda text: [*text[:2], wrong, *text[3:-1]],
        "one too many": lambda text: [*text[:2], wrong, *text[2:-1]],
        "missing": lambda text: [*text[:2], *text[3:-1]],
    }[kind]
    drafts = [spoil(text) for text in texts]
    decoded = verifier(assembled, ends).decode(inputs(), drafts, [LIMIT] * 4)
    assert [row.tokens for row in decoded] == texts
    assert sum(row.passes for row in decoded) <= 10  # in a row of equal tokens, which of them was meant is a guess


def test_log_probabilities_are_the_models(assembled: LoadedModel, ends: list[int], texts: list[list[int]]) -> None:
    """Though they come from several passes."""
    speech = inputs()
    decoded = verifier(assembled, ends).decode(speech, [text[2:] for text in texts], [LIMIT] * 4)
    for index, (row, length) in enumerate(zip(decoded, LENGTHS, strict=True)):
        embeddings = speech.speech_embeddings[index : index + 1, :length]
        labels = torch.tensor([row.tokens])
        with torch.no_grad():
            logits = assembled.model(speech_embeddings=embeddings, labels=labels).logits[0, :-1]
        expected = logits.log_softmax(dim=-1).gather(1, labels.T)[:, 0]
        assert row.log_probs == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_threshold_accepts_what_the_model_finds_likely(
    assembled: LoadedModel, ends: list[int], texts: list[list[int]]
) -> None:
    """The draft's second choice goes through below its probability, and not above it."""
    speech = inputs()
    labels = torch.tensor([texts[3]])
    with torch.no_grad():
        logits = assembled.model(speech_embeddings=speech.speech_embeddings[3:], labels=labels).logits[0]
    probabilities, tokens = logits[0].softmax(dim=-1).topk(2)
    draft = [int(tokens[1])]
    only = SpeechEncoderOutput(speech.speech_embeddings[3:], speech.speech_lengths[3:])
    second = float(probabilities[1])
    lenient = verifier(assembled, ends, accept_threshold=0.9 * second).decode(only, [draft], [LIMIT])[0]
    strict = verifier(assembled, ends, accept_threshold=min(1.0, 1.1 * second)).decode(only, [draft], [LIMIT])[0]
    assert lenient.tokens[0] == draft[0]
    assert strict.tokens == texts[3]


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("abc", "defgh"),  # as expected
        ("abx", "defgh"),  # another letter
        ("abcc", "defgh"),  # one that the draft lacks
        ("abd", "efgh"),  # one that the text lacks
        ("bc", "defgh"),
        ("abcdefgh", ""),
        ("", "abcdefgh"),
    ],
)
def test_a_draft_goes_on_where_the_text_has_arrived(text: str, rest: str) -> None:
    draft = Draft([ord(letter) for letter in "abcdefgh"], list("abcdefgh"))
    for letter in text:
        draft.follow(ord(letter), letter)
    assert "".join(map(chr, draft.rest())) == rest
    assert "".join(map(chr, draft.rest(2))) == rest[:2]


def test_a_word_spelled_in_other_tokens_is_still_that_word() -> None:
    draft = Draft([1, 2, 3, 4], ["the", "ir", " old", " house"])
    draft.follow(9, "there")
    assert draft.rest() == [3, 4]
