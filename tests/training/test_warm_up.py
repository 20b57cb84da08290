"""The warm-up stage: the adapter by CTC on token embeddings, resumable; and a CTC head trained beside the adapter."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from asr_doge.data.feature_cache import FeatureCache
from asr_doge.data.manifest import Utterance, read_manifest
from asr_doge.decoding import DecoderName, DecodingConfig
from asr_doge.decoding.recognition import Recognizer
from asr_doge.errors import ConfigError
from asr_doge.inference.configuration import FeaturesConfig
from asr_doge.inference.features import compute_features
from asr_doge.models import LoadedModel, assemble_model, load_model
from asr_doge.models.adapter_ctc import AdapterCTCHead
from asr_doge.models.ctc_head import HeadedEncoder
from asr_doge.training import warm_up
from asr_doge.training.heads import adapter_settings, token_labels
from tests.models import tiny
from tests.training.conftest import Finished, Settings, Train
from tests.training.runs import log_of, same_weights, train_and_be_killed

WARM = {"warm_up": "ctc", "warm_up_steps": 6, "epochs": 2}


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints of the stage every two steps."""
    monkeypatch.setattr(warm_up, "STEPS_BETWEEN_CHECKPOINTS", 2)


@pytest.fixture
def whisper_cache(corpus: Path, whisper_folder: Path, tmp_path: Path) -> Path:
    options = FeaturesConfig(str(corpus), str(tmp_path / "cache"), str(whisper_folder), "clip", device="cpu")
    return Path(compute_features(options).folder)


def test_logits_are_cosines_to_what_the_embedding_module_gives(granite_folder: Path, doge_folder: Path) -> None:
    loaded = assemble_model(granite_folder, doge_folder, device="cpu", dtype=torch.float64)
    settings = adapter_settings(loaded.processor, _utterances("it's all well", "the fox"))
    used = {*loaded.processor.text_ids("it's all well").tolist(), *loaded.processor.text_ids("the fox").tolist()}
    assert set(settings.token_ids) == used - {loaded.processor.tokenizer.eos_token_id}
    head = AdapterCTCHead(settings, loaded.model.adapter, loaded.model.get_input_embeddings()).double()
    speech = torch.stack(tiny.random_clips([5, 5], tiny.SPEECH_SIZE))
    with torch.no_grad():
        logits, lengths = head(speech, torch.tensor([5, 3]))
        adapted = loaded.model.adapter.layers(speech)
        vectors = [head.blank, *loaded.model.get_input_embeddings().weight[list(settings.token_ids)]]
        for number, vector in enumerate(vectors):
            expected = head.temperature.exp() * F.cosine_similarity(adapted, vector.expand_as(adapted), dim=-1)
            assert torch.allclose(logits[0, :, number], expected[0])
    assert lengths.tolist() == [5, 3]
    assert not logits[1, 3:].any()
    labels = token_labels(loaded.processor, settings)
    assert head.vocabulary.text(labels("it's all well")) == "it's all well"
    assert head.vocabulary.text(head.vocabulary.ids("well all fox")).strip() == "well all fox"


def _utterances(*texts: str) -> list[Utterance]:
    return [Utterance(str(number), Path("x.wav"), text, text, 1.0) for number, text in enumerate(texts)]


def test_the_stage_sets_the_adapter_before_the_run(run: Train, settings: Settings, tmp_path: Path) -> None:
    run(tmp_path / "cold", epochs=1)
    run(tmp_path / "warm", **{**WARM, "epochs": 1})
    stage = load_file(tmp_path / "warm" / "warm_up" / "finished.safetensors")
    assert {name.partition(".")[0] for name in stage} == {"head", "adapter"}
    assert not list((tmp_path / "warm" / "warm_up").glob("checkpoint-*"))
    assert log_of(tmp_path / "warm")[0]["loss"] != log_of(tmp_path / "cold")[0]["loss"]


def test_the_adapter_is_then_as_loud_as_token_embeddings(
    run: Train, settings: Settings, tmp_path: Path, granite_folder: Path, doge_folder: Path, cache: Path
) -> None:
    run(tmp_path, **{**WARM, "epochs": 1})
    loaded = assemble_model(granite_folder, doge_folder, device="cpu", adapter_hidden_dim=32)
    stage = load_file(tmp_path / "warm_up" / "finished.safetensors")
    weights = {name.removeprefix("adapter."): stage[name] for name in stage if name.startswith("adapter.")}
    loaded.model.adapter.load_state_dict(weights)
    features = FeatureCache.open(cache)
    dev = read_manifest(cache.parent / "dev_manifest.json")
    with torch.no_grad():
        given = torch.cat([loaded.model.adapter.layers(features[utterance.id].float()) for utterance in dev])
    wanted = loaded.model.get_input_embeddings().weight.square().mean().sqrt()
    assert abs(given.square().mean().sqrt() / wanted - 1) < 0.05


@pytest.mark.parametrize("killed_at", [3, 7])
def test_a_killed_run_is_gone_on_with(
    run: Train, finished: Finished, settings: Settings, tmp_path: Path, killed_at: int
) -> None:
    whole, _ = finished(**WARM)
    assert train_and_be_killed(settings(tmp_path / "killed", **WARM), killed_at, writes=0) == -9
    assert not list((tmp_path / "killed").glob("checkpoint-*"))
    run(tmp_path / "killed", **WARM, resume_from="latest")
    assert log_of(tmp_path / "killed") == log_of(whole)
    assert same_weights(tmp_path / "killed" / "final", whole / "final")


def test_a_run_killed_in_its_warm_up_is_not_gone_on_with_otherwise(
    run: Train, settings: Settings, tmp_path: Path
) -> None:
    assert train_and_be_killed(settings(tmp_path, **WARM), 3, writes=0) == -9
    with pytest.raises(ConfigError, match="that run had --warm_up_steps 6, now 7"):
        run(tmp_path, **{**WARM, "warm_up_steps": 7}, resume_from="latest")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warm_up": "ctc", "features_dir": ""}, "--warm_up ctc: it learns from a feature cache"),
        ({"ctc_head": "conformer"}, "--ctc_head conformer is trained with --ctc_weight only"),
        ({"ctc_weight": 0.3}, "this encoder has its own, which is frozen"),
    ],
)
def test_what_contradicts_itself_is_refused(
    run: Train, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, **options)


@pytest.mark.parametrize("kind", ["adapter", "conformer"])
def test_a_head_is_trained_beside_the_adapter_and_drafts_for_it(
    run: Train, whisper_folder: Path, whisper_cache: Path, tmp_path: Path, kind: str
) -> None:
    options = {
        "speech_encoder": str(whisper_folder),
        "encoder_window": "clip",
        "features_dir": str(whisper_cache),
        "adapter_stack": 5,
        "ctc_weight": 0.5,
        "ctc_head": kind,
    }
    result = run(tmp_path / "run", **options)
    losses = [entry["loss"] for entry in log_of(tmp_path / "run") if "loss" in entry]
    assert losses[-1] < losses[0]
    loaded = load_model(result.final_dir, device="cpu")
    assert loaded.model.encoder.has_ctc
    waveforms = [tiny.random_waveform(seconds, seed=i) for i, seconds in enumerate((0.8, 1.7))]
    decoders: tuple[DecoderName, ...] = ("draft", "greedy", "ctc")
    texts = {
        decoder: Recognizer(loaded, DecodingConfig(decoder=decoder, guard_silence=False)).recognize(waveforms)
        for decoder in decoders
    }
    assert [one.text for one in texts["draft"]] == [one.text for one in texts["greedy"]]


def test_the_loss_is_both(whisper_folder: Path, doge_folder: Path) -> None:
    loaded = assemble_model(whisper_folder, doge_folder, device="cpu", dtype=torch.float64, adapter_stack=2)
    model = loaded.model
    model.add_ctc_head(adapter_settings(loaded.processor, _utterances("the lazy dog")))
    tiny.randomize(model.adapter, seed=2)
    assert isinstance(model.encoder, HeadedEncoder)
    labels = loaded.processor(text=["the lazy dog", "the dog"])["labels"]
    ids = token_labels(loaded.processor, model.encoder.ctc_head.settings)
    ctc = [torch.tensor(ids(text)) for text in ("the lazy dog", "the dog")]
    speech, mask = tiny.padded(tiny.random_clips([40, 33], 16))
    with torch.no_grad():
        alone = model(speech_embeddings=speech, attention_mask=mask, labels=labels).loss
        model.ctc_weight = 0.25
        padded = torch.nn.utils.rnn.pad_sequence(ctc, True, -100)
        both = model(speech_embeddings=speech, attention_mask=mask, labels=labels, ctc_labels=padded).loss
        total = 0.0
        for clip, length, target in zip(speech, mask.sum(dim=1), ctc, strict=True):
            logits, _ = model.encoder.ctc_head(clip[None, :length], length[None])
            loss = torch.nn.CTCLoss(reduction="sum")
            frames = torch.tensor([logits.shape[1]])
            total += float(loss(logits[0].log_softmax(-1)[:, None], target[None], frames, torch.tensor([len(target)])))
    count = int((labels != -100).sum())
    assert torch.allclose(both, alone + 0.25 * total / count)


def test_gemma_scales_its_embeddings(whisper_folder: Path, tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        pad_token_id=2,
        eos_token_id=1,
        bos_token_id=0,
    )
    gemma = Gemma3ForCausalLM(config)
    tiny.save_language_model(gemma, tmp_path / "gemma")
    loaded: LoadedModel = assemble_model(
        whisper_folder, tmp_path / "gemma", device="cpu", adapter_stack=5, adapter_output_norm=True
    )
    embedding, norm = gemma.get_input_embeddings(), loaded.model.adapter.norm
    assert isinstance(embedding, nn.Embedding)
    assert isinstance(norm, nn.RMSNorm)
    stored = embedding.weight.square().mean().sqrt()
    expected = stored * 64**0.5  # Gemma's own scale is the root of the width
    assert torch.allclose(norm.weight, expected.expand_as(norm.weight), rtol=0.05)
