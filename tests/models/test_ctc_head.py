"""A CTC head: its clips do not see each other, its texts come back, and with it an encoder has CTC."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_doge.choices import CTCHeadType, Quantization
from asr_doge.errors import ConfigError
from asr_doge.models import assemble_model, load_encoder_alone, load_model, loading
from asr_doge.models.ctc_head import CTCHead, CTCHeadSettings, HeadedEncoder
from asr_doge.models.ctc_vocabulary import LEAST_OCCURRENCES, CTCVocabulary
from asr_doge.models.encoders import length_mask
from asr_doge.models.encoders.dense import DenseCTCHead
from asr_doge.models.export import EncoderGraph
from asr_doge.models.quantization import is_quantized
from tests.models import tiny

LETTERS = " abcdefghijklmnopqrstuvwxyz'"
KINDS: tuple[Quantization, Quantization] = ("none", "int8")
SIZE = 16
"""Of tiny Whisper's states."""


def settings_of(kind: CTCHeadType, stack: int = 2) -> CTCHeadSettings:
    return CTCHeadSettings(list(LETTERS), type=kind, stack=stack, hidden_dim=8, layers=2, dropout=0.5)


def head_of(kind: CTCHeadType, stack: int = 2) -> CTCHead:
    head = CTCHead(settings_of(kind, stack), SIZE)
    tiny.randomize(head, seed=3)
    return head.double().eval()


@pytest.mark.parametrize("kind", ["linear", "blstm", "conformer"])
@settings(max_examples=10)
@given(
    lengths=st.lists(st.integers(1, 450), min_size=2, max_size=4),
    stack=st.integers(1, 3),
    padding=st.floats(-9, 9),
    extra=st.integers(0, 7),
)
def test_a_clips_logits_do_not_depend_on_its_batch(
    kind: CTCHeadType, lengths: list[int], stack: int, padding: float, extra: int
) -> None:
    head = head_of(kind, stack)
    clips = tiny.random_clips(lengths, SIZE)
    batch, mask = tiny.padded(clips, padding, extra)
    with torch.no_grad():
        logits, frames = head(batch, mask.sum(dim=1))
        for row, clip, count in zip(logits, clips, frames.tolist(), strict=True):
            alone, own = head(clip[None], torch.tensor([len(clip)]))
            assert count == own.item() == -(-len(clip) // stack)
            assert tiny.relative_difference(row[:count], alone[0]) < 1e-9
            assert not row[count:].any()


@pytest.mark.parametrize("kind", ["linear", "blstm", "conformer"])
def test_a_head_for_whisper_base_is_small(kind: CTCHeadType) -> None:
    head = CTCHead(CTCHeadSettings(list(LETTERS), type=kind), 512)
    assert sum(parameter.numel() for parameter in head.parameters()) < 3_000_000


@given(text=st.text(LETTERS, max_size=40))
def test_characters_come_back(text: str) -> None:
    vocabulary = CTCVocabulary(LETTERS)
    assert vocabulary.text(vocabulary.ids(text)) == text
    assert 0 not in vocabulary.ids(text)


def test_what_the_vocabulary_lacks_is_left_out() -> None:
    vocabulary = CTCVocabulary.of_characters(["né a"] + ["ab a"] * LEAST_OCCURRENCES)
    assert vocabulary.tokens == (" ", "a", "b")
    assert vocabulary.text(vocabulary.ids("née, ab")) == " ab"


@settings(max_examples=25)
@given(words=st.lists(st.sampled_from(" ".join(tiny.SENTENCES).split()), min_size=1, max_size=8))
def test_pieces_of_words_come_back_and_are_fewer_than_characters(words: list[str]) -> None:
    vocabulary = CTCVocabulary.of_pieces(tiny.SENTENCES * LEAST_OCCURRENCES, 80)
    again = CTCVocabulary(vocabulary.tokens, vocabulary.merges)
    text = " ".join(words)
    ids = again.ids(text)
    assert again.text(ids).strip() == text
    assert 0 not in ids
    assert max(ids) < len(again) <= 81
    assert len(ids) < len(text) + 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tokens": []}, "tokens are empty"),
        ({"tokens": ["a"], "type": "transformer"}, "type must be one of linear, blstm, conformer"),
        ({"tokens": ["a"], "stack": 0}, "stack must be at least 1"),
        ({"tokens": ["a"], "hidden_dim": 6}, "hidden_dim 6 must be a multiple of 4"),
        ({"tokens": ["a"], "colour": 1}, "unexpected keyword argument 'colour'"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CTCHeadSettings.read(values)


def test_an_encoder_with_a_head_has_ctc_and_the_same_embeddings(head_folder: Path, whisper_folder: Path) -> None:
    speech_encoder = load_encoder_alone(head_folder, device="cpu", dtype=torch.float64)
    encoder = speech_encoder.encoder
    assert encoder.has_ctc
    assert encoder.ctc_frame_rate_hz == 25
    assert encoder.ctc_text(encoder.ctc_ids("it's")) == "it's"
    waveforms = [tiny.random_waveform(seconds, seed=i) for i, seconds in enumerate((0.7, 1.9))]
    together = speech_encoder.encode(waveforms, return_ctc_logits=True)
    assert together.ctc_logits is not None
    assert together.ctc_lengths is not None
    assert together.ctc_lengths.tolist() == [18, 48]  # 35 and 95 states, by twos
    for index, waveform in enumerate(waveforms):
        alone = speech_encoder.encode([waveform], return_ctc_logits=True)
        assert alone.ctc_logits is not None
        count = alone.ctc_logits.shape[1]
        assert tiny.relative_difference(together.ctc_logits[index, :count], alone.ctc_logits[0]) < 1e-9
    bare = speech_encoder.encode(waveforms)
    assert bare.ctc_logits is None
    assert torch.equal(bare.speech_embeddings, together.speech_embeddings)
    assert isinstance(encoder, HeadedEncoder)
    assert encoder.family.window == "clip"


def test_a_batch_is_encoded_in_parts_that_are_short_together(
    head_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "ENCODED_SECONDS", 1.5)
    speech_encoder = load_encoder_alone(head_folder, device="cpu", dtype=torch.float64)
    waveforms = [
        tiny.random_waveform(seconds, seed=i)
        for i, seconds in enumerate((0.9, 0.7, 0.7, 0.1, 0.1, 0.1, 0.1, 1.4, 2.0, 0.2))
    ]
    sizes: list[int] = []
    hook = speech_encoder.encoder.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    together = speech_encoder.encode(waveforms, return_ctc_logits=True)
    hook.remove()
    assert sizes == [1, 2, 4, 1, 1, 1]
    assert together.ctc_logits is not None
    assert together.ctc_lengths is not None
    for index, waveform in enumerate(waveforms):
        alone = speech_encoder.encode([waveform], return_ctc_logits=True)
        assert alone.ctc_logits is not None
        for ours, lengths, theirs in (
            (together.speech_embeddings, together.speech_lengths, alone.speech_embeddings),
            (together.ctc_logits, together.ctc_lengths, alone.ctc_logits),
        ):
            assert lengths[index] == theirs.shape[1]
            assert tiny.relative_difference(ours[index, : theirs.shape[1]], theirs[0]) < 1e-9
            assert not ours[index, theirs.shape[1] :].any()


def test_a_model_saves_its_head_and_finds_it_again(head_folder: Path, doge_folder: Path, tmp_path: Path) -> None:
    loaded = assemble_model(head_folder, doge_folder, device="cpu", adapter_stack=5, adapter_hidden_dim=8)
    loaded.save(tmp_path / "checkpoint")
    again = load_model(tmp_path / "checkpoint", device="cpu")
    first, second = loaded.model.state_dict(), again.model.state_dict()
    assert first.keys() == second.keys()
    assert any(name.startswith("encoder.ctc_head.blocks.1.") for name in first)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert again.model.config.encoder_config.encoder_window == "clip"
    small = load_encoder_alone(tmp_path / "checkpoint", device="cpu")
    assert small.encoder.has_ctc
    waveform = tiny.random_waveform(1.1)
    whole, own = again.speech_encoder.encode([waveform], True), small.encode([waveform], True)
    assert whole.ctc_logits is not None
    assert own.ctc_logits is not None
    assert torch.equal(whole.ctc_logits, own.ctc_logits)


def test_a_trained_head_is_exported_too(head_folder: Path, doge_folder: Path) -> None:
    loaded = assemble_model(head_folder, doge_folder, device="cpu", dtype=torch.float64, adapter_stack=5)
    tiny.randomize(loaded.model.adapter, seed=1)
    graph = EncoderGraph(loaded.model)
    assert graph.outputs == ("speech", "speech_lengths", "ctc_log_probs")
    batch = loaded.processor([tiny.random_waveform(seconds, seed=i) for i, seconds in enumerate((0.7, 1.9))])
    lengths = batch["attention_mask"].sum(dim=1)
    with torch.no_grad():
        speech, found, log_probs = graph(batch["input_features"].double(), lengths)
        encoded = loaded.model.encode(batch["input_features"], batch["attention_mask"], return_ctc_logits=True)
        expected, expected_lengths = loaded.model.adapter(encoded.speech_embeddings, encoded.speech_lengths)
    assert found.tolist() == expected_lengths.tolist()
    for row, other, count in zip(speech, expected, found.tolist(), strict=True):
        assert tiny.relative_difference(row[:count], other[:count]) < 1e-9
    assert encoded.ctc_logits is not None
    assert encoded.ctc_lengths is not None
    for row, other, count in zip(log_probs, encoded.ctc_logits, encoded.ctc_lengths.tolist(), strict=True):
        assert tiny.relative_difference(row[:count], other[:count].log_softmax(dim=-1)) < 1e-9


@pytest.mark.parametrize("kind", DenseCTCHead.types)
@settings(max_examples=10)
@given(lengths=st.lists(st.integers(1, 430), min_size=1, max_size=3), stack=st.integers(1, 3), extra=st.integers(0, 9))
def test_a_dense_head_is_the_head(kind: CTCHeadType, lengths: list[int], stack: int, extra: int) -> None:
    head = head_of(kind, stack)
    embeddings, mask = tiny.padded(tiny.random_clips(lengths, size=SIZE), padding=9.0, extra=extra)
    sizes = mask.sum(dim=1)
    with torch.no_grad():
        expected, frames = head(embeddings, sizes)
        found = DenseCTCHead(head)(embeddings, sizes)
    real = length_mask(frames, expected.shape[1])
    assert found.shape == expected.shape
    assert tiny.relative_difference(found[real], expected[real]) < 1e-9


def test_a_head_that_cannot_be_dense_is_left_out(head_folder: Path, doge_folder: Path) -> None:
    loaded = assemble_model(head_folder, doge_folder, device="cpu", adapter_stack=5)
    assert isinstance(loaded.model.encoder, HeadedEncoder)
    loaded.model.encoder.ctc_head = head_of("blstm")
    assert EncoderGraph(loaded.model).outputs == ("speech", "speech_lengths")


def test_a_head_in_8_bits_gives_nearly_the_same(whisper_folder: Path, doge_folder: Path, tmp_path: Path) -> None:
    made = assemble_model(whisper_folder, doge_folder, device="cpu", adapter_stack=5, adapter_hidden_dim=8)
    made.model.add_ctc_head(CTCHeadSettings(list(LETTERS), stack=4, hidden_dim=64, layers=1))
    made.save(tmp_path / "best")
    whole, small = (load_model(tmp_path / "best", device="cpu", quantization=kind) for kind in KINDS)
    assert isinstance(small.model.encoder, HeadedEncoder)
    assert is_quantized(small.model.encoder.ctc_head)
    exact, rounded = (one.speech_encoder.encode([tiny.random_waveform(1.3)], True).ctc_logits for one in (whole, small))
    assert exact is not None
    assert rounded is not None
    assert 0 < tiny.relative_difference(rounded, exact) < 0.2
