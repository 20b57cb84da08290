"""Frozen parts made from nothing load like any others, and nothing held out is heard while they are made."""

import dataclasses
import functools
import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import set_seed

from asr_doge.audio import synthesis
from asr_doge.audio.log_mel import MEL_BANDS
from asr_doge.data import digits, write_manifest
from asr_doge.data.digits import DIGIT_WORDS, Recordings, split_voices
from asr_doge.errors import CheckpointError, ConfigError, DataError
from asr_doge.inference.transcription import Transcriber
from asr_doge.models import assemble_model
from asr_doge.training import pretraining
from asr_doge.training.pretraining import collate_ctc, pretrain
from asr_doge.training.pretraining_configuration import PretrainConfig
from asr_doge.training.pretraining_speech import CURRICULUM, Difficulty, PretrainingSpeech, collate_features
from tests import speech
from tests.models import tiny


def write_fsdd(folder: Path) -> Path:
    """Ten digits by two speakers, two takes each in either split."""
    for speaker in ("george", "lucas"):
        for digit in range(10):
            for take in (0, 1, 5, 6):
                waveform = tiny.random_waveform(0.15, seed=digit + 10 * take)
                speech.write_wav(folder / f"{digit}_{speaker}_{take}.wav", waveform)
    return folder


@pytest.fixture(scope="module")
def fsdd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fsdd(tmp_path_factory.mktemp("fsdd"))


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of other speech, one utterance of it too long."""
    folder = tmp_path_factory.mktemp("sentences")
    made = speech.utterances(folder, "train", 4)
    long = speech.write_wav(folder / "long.wav", tiny.random_waveform(5.0))
    write_manifest(folder / "train.jsonl", [*made, type(made[0])("long", long, "too long", "too long", 5.0)])
    return folder / "train.jsonl"


def small(output_dir: Path, fsdd: Path, **options: Any) -> PretrainConfig:
    defaults: dict[str, Any] = {
        "encoder_hidden_dim": 32,
        "encoder_layers": 1,
        "speech_embedding_dim": 16,
        "text_hidden_dim": 16,
        "text_layers": 1,
        "batch_size": 3,
        "ctc_steps": 10,
        "language_steps": 4,
        "text_steps": 4,
        "long_text_steps": 2,
        "num_workers": 0,
    }
    return PretrainConfig(str(output_dir), str(fsdd), **defaults | options)


BRIEF: dict[str, Any] = {"ctc_steps": 2, "language_steps": 2, "text_steps": 2}


@pytest.fixture(scope="module")
def made(fsdd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a brief pretraining; not to be changed by a test."""
    folder = tmp_path_factory.mktemp("pretraining") / "made"
    pretrain(small(folder, fsdd, **BRIEF))
    return folder


@pytest.fixture(scope="module")
def uninterrupted(fsdd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one of some more steps, for those that are interrupted in it."""
    folder = tmp_path_factory.mktemp("pretraining") / "whole"
    pretrain(small(folder, fsdd, language_steps=6, text_steps=6))
    return folder


def noise_speech(size: int = 40, batch_size: int = 4, seed: int = 0, **options: Any) -> PretrainingSpeech:
    recordings: Recordings = {
        speaker: {word: [tiny.random_waveform(0.2, seed=seed)] for seed, word in enumerate(DIGIT_WORDS)}
        for speaker in ("ann", "bob")
    }
    defaults: dict[str, Any] = {"recordings": recordings, "sentences": [], "sentence_share": 0.5}
    return PretrainingSpeech(size, batch_size, seed=seed, **defaults | options)


def test_the_parts_load_and_train_like_published_ones(
    fsdd: Path, sentences: Path, tmp_path: Path, doge_folder: Path, granite_folder: Path
) -> None:
    pretrain(small(tmp_path, fsdd, sentences_manifest=str(sentences)))
    encoder, language_model = tmp_path / "encoder", tmp_path / "language_model"
    loaded = assemble_model(encoder, language_model, device="cpu")
    loaded.model.generation_config.max_new_tokens = 5
    assert loaded.model.encoder.hidden_size == 16
    assert loaded.model.get_input_embeddings().embedding_dim == 16
    assert Transcriber(loaded).transcribe([tiny.random_waveform(1.0)])
    assert assemble_model(encoder, doge_folder, device="cpu")  # each part also goes with others
    assert assemble_model(granite_folder, language_model, device="cpu")
    for folder in (encoder, language_model):
        tensors = load_file(folder / "model.safetensors")
        assert {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()} == {torch.float16}
        assert all(tensor.isfinite().all() for tensor in tensors.values())
    for word in DIGIT_WORDS:
        assert len(loaded.processor.tokenizer(f" {word}", add_special_tokens=False).input_ids) == 1


@pytest.mark.parametrize("stage", ["CTCStage", "StretchedTokenStage", "TextStage"])
def test_the_same_seed_gives_the_same_parts_and_an_interrupted_run_goes_on(
    fsdd: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    with monkeypatch.context() as patch:
        module = getattr(pretraining, stage)
        forward, calls = module.forward, itertools.count()

        @functools.wraps(forward)  # the Trainer looks at its arguments
        def interrupted(*arguments: Any, **named: Any) -> Any:
            if next(calls) == 4:
                raise KeyboardInterrupt
            return forward(*arguments, **named)

        patch.setattr(module, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pretrain(small(tmp_path / "cut", fsdd, language_steps=6, text_steps=6))
    assert not (tmp_path / "cut" / "encoder").exists()
    pretrain(small(tmp_path / "cut", fsdd, language_steps=6, text_steps=6))
    for part in ("encoder", "language_model"):
        whole, cut = (load_file(folder / part / "model.safetensors") for folder in (uninterrupted, tmp_path / "cut"))
        assert whole.keys() == cut.keys()
        assert [name for name in whole if not torch.equal(whole[name], cut[name])] == []


def test_the_stages_train_what_they_should(fsdd: Path, made: Path) -> None:
    config = small(made, fsdd, **BRIEF)
    set_seed(config.seed)
    start = {name: tensor.clone() for name, tensor in pretraining.build_encoder(config).state_dict().items()}
    end = load_file(made / "encoder" / "model.safetensors")
    moved = {name.partition(".")[0] for name in start if not torch.equal(start[name].half(), end[name].half())}
    assert moved == {"encoder", "projector"}


def test_stages_of_one_recipe_do_not_go_on_by_another(fsdd: Path, sentences: Path, made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made, tmp_path / "copy")

    def config(**options: Any) -> PretrainConfig:
        return small(folder, fsdd, **BRIEF | options)

    recipe = folder / "stages" / "config.yaml"
    written = yaml.safe_load(recipe.read_text())
    fields = {field.name for field in dataclasses.fields(PretrainConfig)}
    assert written.keys() == fields - {"output_dir", "num_workers"}
    parts = {path: path.read_bytes() for path in folder.glob("*/model.safetensors")}
    assert len(parts) == 2
    with pytest.raises(ConfigError) as caught:
        pretrain(config(seed=1, learning_rate=1e-5, sentences_manifest=str(sentences)))
    message = str(caught.value)
    for finding in ("--seed (0, now 1)", "--learning_rate (0.002, now 1e-05)", "--sentences_manifest", "--output_dir"):
        assert finding in message
    assert "--batch_size" not in message
    assert "\n" not in message
    assert parts == {path: path.read_bytes() for path in parts}

    recipe.unlink()  # as of a run begun before recipes were written down
    pretrain(config(num_workers=1))
    assert yaml.safe_load(recipe.read_text()) == written
    assert parts == {path: path.read_bytes() for path in parts}
    recipe.write_text("- [")
    with pytest.raises(ConfigError, match=r"config\.yaml is damaged"):
        pretrain(config())


@pytest.mark.parametrize("change", ["missing", "unexpected"])
@pytest.mark.parametrize("stage", ["ctc", "language", "text"])
def test_a_finished_stage_with_other_weights_is_refused(
    fsdd: Path, made: Path, tmp_path: Path, stage: str, change: str
) -> None:
    config = small(shutil.copytree(made, tmp_path / "copy"), fsdd, **BRIEF)
    path = tmp_path / "copy" / "stages" / stage / "final" / "model.safetensors"
    weights = load_file(path)
    if change == "missing":
        weights.popitem()
    else:
        weights["another"] = torch.zeros(1)
    save_file(weights, path)
    missing, unexpected = (1, 0) if change == "missing" else (0, 1)
    with pytest.raises(CheckpointError, match=f"{missing} weights missing, {unexpected} unexpected") as caught:
        pretrain(config)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("texts", [["", "one"], ["one", ""], ["", ""]])
def test_characters_are_whole_numbers_even_of_silence(texts: list[str]) -> None:
    batch = collate_ctc([{"input_features": torch.zeros(4, 2 * MEL_BANDS), "text": text} for text in texts])
    assert batch["characters"].dtype == torch.long
    assert batch["character_lengths"].tolist() == [len(text) for text in texts]


def test_missing_recordings_are_named(fsdd: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no train recordings"):
        pretrain(small(tmp_path / "out", tmp_path))
    with pytest.raises(DataError, match=r"nothing\.jsonl"):
        pretrain(small(tmp_path / "out", fsdd, sentences_manifest=str(tmp_path / "nothing.jsonl")))
    assert not (tmp_path / "out").exists()


def test_the_held_out_speaker_and_takes_are_not_heard(fsdd: Path, tmp_path: Path) -> None:
    heard = pretraining._speech(small(tmp_path, fsdd), 2, CURRICULUM, seed=0)
    assert heard.recordings.keys() == {"george"}
    assert {len(takes) for takes in heard.recordings["george"].values()} == {2}  # of four


def test_of_sentences_the_long_ones_are_left_out(fsdd: Path, sentences: Path, tmp_path: Path) -> None:
    config = small(tmp_path, fsdd, sentences_manifest=str(sentences))
    every, only_digits = (
        pretraining._speech(config, 2, curriculum, seed=0) for curriculum in (CURRICULUM, [CURRICULUM[-1]])
    )
    assert [path.name for path, _ in every.sentences] == [f"train-{n}.wav" for n in range(4)]
    assert only_digits.sentences == []


def test_held_out_voices_are_not_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    names = []

    def listen(text: str, voice: synthesis.Voice, *_: object) -> Any:
        names.append(voice.name)
        return spoken(text, voice)

    spoken = synthesis.synthesize
    monkeypatch.setattr(digits, "synthesize", listen)
    dataset = noise_speech()
    for index in range(len(dataset)):
        dataset[index]
    assert len(set(names)) > 5
    assert not set(names) & set(split_voices().unseen)


def test_a_clip_depends_on_the_seed_and_its_number_alone(sentences: Path) -> None:
    options: dict[str, Any] = {
        "sentences": [(sentences.parent / "audio" / f"train-{n}.wav", "a text") for n in range(4)]
    }
    one, other, third = noise_speech(**options), noise_speech(**options), noise_speech(seed=1, **options)
    order = np.random.default_rng(0).permutation(len(one)).tolist()
    forwards = {index: one[index] for index in range(len(one))}
    for index in order:
        clip = other[index]
        assert clip["text"] == forwards[index]["text"]
        assert torch.equal(clip["input_features"], forwards[index]["input_features"])
    assert [third[index]["text"] for index in range(10)] != [one[index]["text"] for index in range(10)]


def test_clips_grow_harder_and_batches_are_of_similar_length() -> None:
    dataset = noise_speech(size=120, batch_size=4, curriculum=(Difficulty(0.5, 1, 0.0), Difficulty(1.0, 5, 1.0)))
    counts = [len(dataset[index]["text"].split()) for index in range(120)]
    assert set(counts[:60]) <= {0, 1}
    assert max(counts[60:]) == 5
    for start in range(0, 120, 4):
        assert len({count for count in counts[start : start + 4] if count}) <= 1
    assert set(dataset[0]["text"].split()) <= set(DIGIT_WORDS)
    assert CURRICULUM[-1].until == 1.0


def test_some_clips_are_silent_and_sentences_come_later(sentences: Path) -> None:
    options: dict[str, Any] = {"sentences": [(sentences.parent / "audio" / "train-0.wav", "a text")], "size": 160}
    dataset, digits_only = noise_speech(**options), noise_speech(size=40)
    texts = [dataset[index]["text"] for index in range(160)]
    assert "" in texts
    assert "a text" not in texts[: int(CURRICULUM[0].until * 160)]
    assert 20 < texts.count("a text") < 100
    assert "a text" not in [digits_only[index]["text"] for index in range(40)]


def test_a_batch_knows_its_lengths() -> None:
    dataset = noise_speech()
    clips = [dataset[index] for index in (0, 39)]
    batch = collate_features(clips)
    assert batch["input_lengths"].tolist() == [len(clip["input_features"]) for clip in clips]
    for row, clip in zip(batch["input_features"], clips, strict=True):
        assert torch.equal(row[: len(clip["input_features"])], clip["input_features"])
        assert not row[len(clip["input_features"]) :].any()
