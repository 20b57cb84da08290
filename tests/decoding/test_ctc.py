"""Best-path CTC decoding, against paths written by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asr_doge.decoding.ctc import best_path_probabilities, ctc_greedy_texts, ctc_label_ids
from asr_doge.models import LoadedModel
from asr_doge.models.ctc_head import CTCHead, CTCHeadSettings, HeadedEncoder
from asr_doge.models.ctc_vocabulary import CTCVocabulary

BLANK = "_"


def decode(loaded: LoadedModel, *paths: str, lengths: list[int] | None = None) -> list[str]:
    """Texts of best paths, one character a frame; frames past a path's end say `!`."""
    frames = max(map(len, paths))
    logits = torch.full((len(paths), frames, 128), -1.0)
    for row, path in zip(logits, paths, strict=True):
        for frame, character in zip(row, path.ljust(frames, "!"), strict=True):
            frame[0 if character == BLANK else ord(character)] = 1.0
    return ctc_greedy_texts(loaded.model.encoder, logits, torch.tensor(lengths or [len(path) for path in paths]))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("cat", "cat"),
        ("cccaaattt", "cat"),
        ("_c__aa_t_", "cat"),
        ("hel_lo", "hello"),  # a blank between equal letters keeps both
        ("helllo", "helo"),
        ("see_e", "see"),
        ("one  two", "one two"),
        ("  one two__  ", "one two"),
        ("_____", ""),
        ("_", ""),
    ],
)
def test_repeats_collapse_and_blanks_vanish(assembled: LoadedModel, path: str, text: str) -> None:
    assert decode(assembled, path) == [text]


def test_frames_past_the_length_are_not_read(assembled: LoadedModel) -> None:
    assert decode(assembled, "one", "a", "eleven") == ["one", "a", "eleven"]
    assert decode(assembled, "seven", "seven", lengths=[4, 0]) == ["seve", ""]


@given(st.lists(st.sampled_from("abc "), max_size=12).map("".join))
def test_every_text_has_a_path(assembled: LoadedModel, text: str) -> None:
    path = BLANK.join(f"{character}{character}" for character in text)
    assert decode(assembled, f"_{path}_") == [text.strip()]


def test_labels_of_the_best_path_have_their_probabilities_and_blanks_none() -> None:
    posteriors = np.array([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.1, 0.5, 0.4], [0.2, 0.35, 0.45]], dtype=np.float32)
    assert best_path_probabilities(np.log(posteriors)) == pytest.approx([0.6, 0.5, 0.45])
    assert len(best_path_probabilities(np.log(posteriors[:1]))) == 0
    assert len(best_path_probabilities(np.zeros((0, 3), dtype=np.float32))) == 0


def test_characters_have_the_labels_of_the_head_that_is_in_place(assembled: LoadedModel) -> None:
    """Labels are remembered; another head of the same encoder, or another alphabet of the same head, has its own."""
    family = assembled.model.encoder
    heads = [CTCHead(CTCHeadSettings(tokens, type="linear"), family.hidden_size) for tokens in (" ab", " baB")]
    first, second = (HeadedEncoder(family, head) for head in heads)
    for _ in range(2):
        assert ctc_label_ids(family, "abé") == [(65, 97), (66, 98)]
        assert ctc_label_ids(first, "abé") == [(2,), (3,)]
        assert ctc_label_ids(second, "abé") == [(3,), (4, 2)]
    first.vocabulary = CTCVocabulary("éA")
    assert ctc_label_ids(first, "abé") == [(2,), (1,)]
