"""Every decoder by one way in, on the bundled model: what it writes, what the guards say, when words are said."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from asr_doge.audio import SAMPLE_RATE
from asr_doge.data.digits import DIGIT_WORDS, DigitClip, split_voices, synthesized_clips
from asr_doge.decoding import DecodingConfig
from asr_doge.decoding.decoders import choose_decoder
from asr_doge.decoding.recognition import Recognition, Recognizer
from asr_doge.errors import CheckpointError, ConfigError
from asr_doge.models import LoadedModel, assemble_model, load_encoder_alone, load_model
from asr_doge.text.scoring import score

UNGUARDED = {"guard_silence": False, "guard_length": False, "guard_loops": False}


@pytest.fixture(scope="module")
def nano() -> LoadedModel:
    return load_model("nano", device="cpu")


@pytest.fixture(scope="module")
def clips() -> list[DigitClip]:
    return list(synthesized_clips(8, split_voices().train, seed=3))


@pytest.fixture(scope="module")
def waveforms(clips: list[DigitClip]) -> list[NDArray[np.float32]]:
    return [clip.waveform for clip in clips]


def recognize(loaded: LoadedModel, waveforms: list[NDArray[np.float32]], **options: object) -> list[Recognition]:
    return Recognizer(loaded, DecodingConfig(**options)).recognize(waveforms)  # type: ignore[arg-type]


def texts(recognitions: list[Recognition]) -> list[str]:
    return [recognition.text for recognition in recognitions]


def test_draft_is_greedy_in_fewer_passes(nano: LoadedModel, waveforms: list[NDArray[np.float32]]) -> None:
    """Equality 4 on the bundled model; one by one too, where nothing is ragged."""
    greedy = recognize(nano, waveforms, decoder="greedy")
    draft = recognize(nano, waveforms)
    assert choose_decoder(DecodingConfig(), nano) == "draft"
    assert texts(draft) == texts(greedy)
    assert sum(one.passes for one in draft) < 0.7 * sum(one.passes for one in greedy)
    assert [recognize(nano, [clip])[0].text for clip in waveforms] == texts(draft)


def test_a_clip_of_unlikely_labels_is_silent_beside_one_of_likely_ones(
    waveforms: list[NDArray[np.float32]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The threshold lies between the two clips' own means; the labels of the silent one are still known."""
    loaded = load_model("nano", device="cpu")
    free = recognize(loaded, waveforms)
    means = [float(np.mean(one.label_probabilities)) for one in free]
    unlikely, likely = int(np.argmin(means)), int(np.argmax(means))
    monkeypatch.setattr(loaded.model.config, "silent_below", (means[unlikely] + means[likely]) / 2)
    pair = [waveforms[unlikely], waveforms[likely]]
    for recognizer in (
        Recognizer(loaded, DecodingConfig()),
        Recognizer(loaded.speech_encoder, DecodingConfig(decoder="ctc")),
    ):
        silent, said = recognizer.recognize(pair)
        assert (silent.text, silent.guards) == ("", ("silence",))
        assert silent.label_probabilities == pytest.approx(free[unlikely].label_probabilities, abs=1e-3)
        assert said.text
    assert recognize(loaded, pair[:1], guard_silence=False)[0].text == free[unlikely].text
    # An unsure word may be the one that is asked for.
    assert Recognizer(loaded, DecodingConfig()).recognize(pair[:1], hotwords=[["seven"]])[0].text


def test_the_encoder_alone_recognizes_as_the_whole_model_drafts(
    nano: LoadedModel, clips: list[DigitClip], waveforms: list[NDArray[np.float32]]
) -> None:
    alone = load_encoder_alone("nano/encoder", device="cpu")
    drafts = texts(Recognizer(alone, DecodingConfig(decoder="ctc")).recognize(waveforms))
    assert drafts == texts(recognize(nano, waveforms, decoder="ctc"))
    assert drafts == texts(Recognizer(load_encoder_alone("nano", device="cpu"), DecodingConfig()).recognize(waveforms))
    assert score([" ".join(clip.digits) for clip in clips], drafts).cer < 0.2


def test_a_published_model_gives_its_encoder(granite_folder: Path, whisper_folder: Path) -> None:
    """With no adapter, no language model and no training; one without a CTC head cannot."""
    alone = load_encoder_alone(granite_folder, device="cpu")
    assert Recognizer(alone, DecodingConfig(decoder="ctc", guard_silence=False)).recognize(
        [np.ones(SAMPLE_RATE, dtype=np.float32)]
    )
    with pytest.raises(ConfigError, match="CTC head"):
        Recognizer(load_encoder_alone(whisper_folder, device="cpu"), DecodingConfig(decoder="ctc"))
    with pytest.raises(ConfigError, match="language model"):
        Recognizer(alone, DecodingConfig(decoder="greedy"))
    with pytest.raises(CheckpointError):
        load_encoder_alone("nano/language_model", device="cpu")


def test_without_a_ctc_head_greedy_is_the_default(whisper_folder: Path, doge_folder: Path) -> None:
    loaded = assemble_model(whisper_folder, doge_folder, device="cpu")
    loaded.model.generation_config.max_new_tokens = 4
    assert choose_decoder(DecodingConfig(), loaded) == "greedy"
    noise = np.random.default_rng(0).standard_normal(SAMPLE_RATE).astype(np.float32)
    (recognition,) = Recognizer(loaded, DecodingConfig(guard_silence=False, timestamps="auto")).recognize([noise])
    assert recognition.text
    assert recognition.words == ()
    for options in ({"decoder": "draft"}, {"timestamps": "word"}, {"accept_threshold": 0.5}):
        with pytest.raises(ConfigError, match=r"CTC head|accept_threshold"):
            Recognizer(loaded, DecodingConfig(**options))


def test_beams_give_several_texts_with_falling_scores(nano: LoadedModel, waveforms: list[NDArray[np.float32]]) -> None:
    for one in recognize(nano, waveforms[:3], decoder="beam", n_best=3):
        assert len({text for text, _ in one.alternatives}) == 3
        scores = [score for _, score in one.alternatives]
        assert scores == sorted(scores, reverse=True)
        assert one.text == one.alternatives[0][0]
        assert all(score <= 0 for score in scores)


@pytest.mark.parametrize("decoder", ["draft", "greedy", "beam", "ctc"])
def test_words_have_times_and_confidences(
    nano: LoadedModel, waveforms: list[NDArray[np.float32]], decoder: str
) -> None:
    clips = waveforms[:4]
    for clip, one in zip(clips, recognize(nano, clips, decoder=decoder, timestamps="word"), strict=True):
        assert " ".join(word.text for word in one.words) == one.text
        times = [time for word in one.words for time in (word.start, word.end)]
        assert times == sorted(times)
        assert times[-1] <= len(clip) / SAMPLE_RATE + 1e-6
        for word in one.words:
            assert (word.confidence is None) == (decoder == "ctc")  # which is calibrated with a language model only
            assert word.confidence is None or 0 <= word.confidence <= 1
        assert one.word_bounds == (one.words[0].start, one.words[-1].end)


@pytest.mark.parametrize("hotword", [None, "five"])
def test_draft_and_greedy_are_equally_sure(
    nano: LoadedModel, waveforms: list[NDArray[np.float32]], tmp_path: Path, hotword: str | None
) -> None:
    """Hotwords raise scores, but the confidence is the model's own."""
    (tmp_path / "words.txt").write_text(hotword or "")
    options = {
        "timestamps": "word",
        "hotwords": str(tmp_path / "words.txt") if hotword else None,
        "hotword_weight": 5.0,
    }
    draft = recognize(nano, waveforms, **options)
    greedy = recognize(nano, waveforms, **options, decoder="greedy")
    if hotword:
        assert texts(draft) != texts(recognize(nano, waveforms))
    for one, other in zip(draft, greedy, strict=True):
        assert [word.confidence for word in one.words] == pytest.approx(
            [word.confidence for word in other.words], abs=1e-3
        )


def sounds(seconds: float = 4.0) -> dict[str, NDArray[np.float32]]:
    """Sounds that are no speech."""
    rng = np.random.default_rng(0)
    samples = int(seconds * SAMPLE_RATE)
    time = np.arange(samples) / SAMPLE_RATE
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    pink = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 1)), samples)
    made = {
        "digital silence": np.zeros(samples),
        "room": 0.001 * rng.standard_normal(samples),
        "white": 0.1 * rng.standard_normal(samples),
        "pink": 0.1 * pink / pink.std(),
        "tone": 0.3 * np.sin(2 * np.pi * 440 * time),
        "chord": 0.1 * np.sin(2 * np.pi * np.outer([262, 330, 392], time)).sum(axis=0),
        "short": 0.1 * rng.standard_normal(SAMPLE_RATE // 5),
    }
    return {name: waveform.astype(np.float32) for name, waveform in made.items()}


def test_nobody_speaks_so_nothing_is_written(nano: LoadedModel) -> None:
    made = sounds()
    for name, one in zip(made, recognize(nano, list(made.values())), strict=True):
        assert (name, one.text) == (name, "")
        assert one == Recognition(guards=("silence",))


def test_a_broken_encoder_has_not_heard_silence(waveforms: list[NDArray[np.float32]]) -> None:
    broken = load_model("nano", device="cpu")
    torch.nn.init.constant_(next(broken.model.encoder.parameters()), float("nan"))
    with pytest.raises(CheckpointError, match="the encoder gives NaN on these recordings"):
        recognize(broken, waveforms)


def test_silence_does_not_disturb_its_neighbours(nano: LoadedModel, waveforms: list[NDArray[np.float32]]) -> None:
    quiet = sounds()
    mixed = recognize(nano, [quiet["tone"], waveforms[0], quiet["digital silence"], waveforms[1]])
    assert texts(mixed) == ["", *texts(recognize(nano, waveforms[:1])), "", *texts(recognize(nano, waveforms[1:2]))]


def test_guards_can_be_turned_off(assembled: LoadedModel) -> None:
    """A random model writes whatever it hears, and without end."""
    tone = [sounds()["tone"]]
    loaded = LoadedModel(assembled.model, assembled.processor)
    before = loaded.model.generation_config.max_new_tokens
    loaded.model.generation_config.max_new_tokens = 200
    try:
        assert recognize(loaded, tone) == [Recognition(guards=("silence",))]
        for decoder in ("draft", "greedy"):
            free = recognize(loaded, tone, **UNGUARDED, decoder=decoder)[0]
            bound = recognize(loaded, tone, **UNGUARDED | {"guard_length": True}, decoder=decoder)[0]
            assert free.guards == ()
            assert bound.guards == ("length",)
            assert free.text.startswith(bound.text.rstrip("\ufffd"))
            assert len(bound.text) < len(free.text)
    finally:
        loaded.model.generation_config.max_new_tokens = before


def test_hotwords_change_what_was_nearly_said_and_nothing_else(
    nano: LoadedModel, clips: list[DigitClip], waveforms: list[NDArray[np.float32]], tmp_path: Path
) -> None:
    """And draft still equals greedy under the same bias."""
    path = tmp_path / "words.txt"
    path.write_text("five\nkubernetes\nnine hundred\n")
    plain = recognize(nano, waveforms)
    biased = recognize(nano, waveforms, hotwords=str(path))
    assert texts(biased) == texts(recognize(nano, waveforms, hotwords=str(path), decoder="greedy"))
    references = [" ".join(clip.digits) for clip in clips]
    assert score(references, texts(biased)).wer <= score(references, texts(plain)).wer + 0.02
    for one in biased:
        assert "kubernetes" not in one.text


def test_a_hotword_does_not_appear_where_it_was_not_said(
    nano: LoadedModel, clips: list[DigitClip], waveforms: list[NDArray[np.float32]], tmp_path: Path
) -> None:
    path = tmp_path / "words.txt"
    plain = texts(recognize(nano, waveforms))
    for word in DIGIT_WORDS:
        path.write_text(word)
        for clip, before, after in zip(
            clips, plain, texts(recognize(nano, waveforms, hotwords=str(path))), strict=True
        ):
            assert after.split().count(word) <= max(clip.digits.count(word), before.split().count(word))


def test_hotwords_are_favoured_alike_whatever_the_decoder(assembled: LoadedModel, tmp_path: Path) -> None:
    """On a random model, of which every text changes when its scores do."""
    path = tmp_path / "words.txt"
    path.write_text("a\nb\nc\nde\nfox\n")
    loaded = LoadedModel(assembled.model, assembled.processor)
    before = loaded.model.generation_config.max_new_tokens
    loaded.model.generation_config.max_new_tokens = 24
    rng = np.random.default_rng(1)
    noise = [rng.standard_normal(length).astype(np.float32) for length in (SAMPLE_RATE, SAMPLE_RATE // 2)]
    options = {**UNGUARDED, "hotwords": str(path), "hotword_weight": 20.0}
    try:
        with torch.inference_mode():
            draft = texts(recognize(loaded, noise, **options, decoder="draft"))
            greedy = texts(recognize(loaded, noise, **options, decoder="greedy"))
        assert draft == greedy
        assert draft != texts(recognize(loaded, noise, **UNGUARDED))
    finally:
        loaded.model.generation_config.max_new_tokens = before


@pytest.mark.parametrize(
    ("options", "finding"),
    [
        ({"num_beams": 0}, "num_beams"),
        ({"num_beams": 100_000}, "num_beams must be at least 1 and at most 100"),
        ({"n_best": 0}, "n_best must be at least 1"),
        ({"num_beams": 3, "decoder": "draft"}, "num_beams"),
        ({"accept_threshold": 1.5}, "accept_threshold"),
        ({"hotword_weight": -1.0}, "hotword_weight"),
        ({"hotword_weight": float("inf")}, "hotword_weight"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, object], finding: str) -> None:
    with pytest.raises(ConfigError, match=finding):
        dataclasses.replace(DecodingConfig(), **options).check()  # type: ignore[arg-type]
