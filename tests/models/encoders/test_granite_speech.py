"""Granite Speech's encoder alone is the original's (equality 1), whatever its batch (equality 2)."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from transformers import GraniteSpeechForConditionalGeneration, GraniteSpeechPlusForConditionalGeneration

from asr_doge.errors import CheckpointError
from asr_doge.models.checkpoints import find_model, load_model_config
from asr_doge.models.encoders import SpeechEncoder
from asr_doge.models.encoders.dense import DENSE
from asr_doge.models.encoders.granite_speech import GraniteSpeechEncoder
from asr_doge.models.encoders.loading import encoder_fingerprint, load_encoder
from tests.models import tiny

LENGTHS = (1, 14, 15, 16, 150, 199, 200, 201, 400, 413)
"""Around the window of 15 frames, the attention block of 200, and odd ones."""
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def load(folder: Path, dtype: torch.dtype = torch.float64) -> GraniteSpeechEncoder:
    reference = find_model(folder)
    encoder = load_encoder(reference, load_model_config(reference), dtype)
    assert isinstance(encoder, GraniteSpeechEncoder)
    return encoder


def full_model(folder: Path) -> GraniteSpeechForConditionalGeneration:
    return GraniteSpeechForConditionalGeneration.from_pretrained(folder, dtype=torch.float64).eval()


def upstream(model: GraniteSpeechForConditionalGeneration, features: Tensor) -> Tensor:
    with torch.no_grad():
        output: Tensor = model.get_audio_features(features).pooler_output
    return output


def alone(encoder: SpeechEncoder, clip: Tensor) -> Tensor:
    with torch.no_grad():
        return encoder(clip[None], torch.tensor([len(clip)])).speech_embeddings


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def copy_with_weights(source: Path, target: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    """The checkpoint `source`, of one file, with other weights."""
    shutil.copytree(source, target)
    save_file(change(load_file(source / WEIGHTS)), target / WEIGHTS, metadata={"format": "pt"})
    return target


def names_in_memory(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """As transformers 5 names them in memory; `save_pretrained` writes those of IBM's repository."""
    return {f"model.{key}": tensor for key, tensor in weights.items()}


@pytest.fixture(scope="session")
def sharded_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "sharded"
    tiny.granite_model().save_pretrained(folder, max_shard_size="10KB")
    return folder


def test_a_clip_alone_gives_what_the_full_model_gives(granite_folder: Path) -> None:
    full, encoder = full_model(granite_folder), load(granite_folder)
    outputs = []
    for clip in tiny.random_clips(LENGTHS):
        ours, theirs = alone(encoder, clip), upstream(full, clip[None])
        assert ours.shape == theirs.shape
        assert tiny.relative_difference(ours, theirs) < 1e-9
        outputs.append(ours)
    # The equality above could not fail if outputs hardly depended on inputs.
    assert (outputs[-1][:, :3] - outputs[-2][:, :3]).abs().max() > 0.1 * outputs[-1].std()


@pytest.fixture(scope="module")
def plus(tmp_path_factory: pytest.TempPathFactory) -> tuple[GraniteSpeechPlusForConditionalGeneration, SpeechEncoder]:
    """Granite Speech Plus, whole and its encoder alone."""
    folder = tmp_path_factory.mktemp("models") / "plus"
    tiny.granite_plus_model().save_pretrained(folder)
    return GraniteSpeechPlusForConditionalGeneration.from_pretrained(folder, dtype=torch.float64).eval(), load(folder)


@settings(max_examples=10)
@example(lengths=[1, 413, 200])
@given(lengths=st.lists(st.integers(1, 430), min_size=1, max_size=3))
def test_the_plus_models_projector_reads_several_layers(
    plus: tuple[GraniteSpeechPlusForConditionalGeneration, SpeechEncoder], lengths: list[int]
) -> None:
    full, encoder = plus
    clips = tiny.random_clips(lengths)
    features, mask = tiny.padded(clips, padding=9.0)
    with torch.no_grad():
        output = encoder(features, mask.sum(dim=1), return_ctc_logits=True)
        dense = DENSE["granite_speech_plus"](encoder)(features, mask.sum(dim=1))
    assert output.ctc_logits is not None
    for row, clip in enumerate(clips):
        with torch.no_grad():
            theirs = full.get_audio_features(clip[None]).pooler_output[0]
            head = full.model.encoder.out
            logits = head(full.model.encoder(clip[None]).last_hidden_state[0, :, -head.in_features :])
        assert int(output.speech_lengths[row]) == len(theirs)
        assert tiny.relative_difference(output.speech_embeddings[row, : len(theirs)], theirs) < 1e-9
        assert tiny.relative_difference(dense.speech_embeddings[row, : len(theirs)], theirs) < 1e-9
        assert tiny.relative_difference(output.ctc_logits[row, : len(clip)], logits) < 1e-9


def test_the_ctc_head_gives_what_the_full_model_gives(granite_folder: Path) -> None:
    full, encoder = full_model(granite_folder), load(granite_folder)
    (clip,) = tiny.random_clips([213])
    with torch.no_grad():
        states = full.model.encoder(clip[None]).last_hidden_state
        theirs = full.model.encoder.out(states)
        output = encoder(clip[None], torch.tensor([213]), return_ctc_logits=True)
        without_projector = encoder.ctc_logits(clip[None], torch.tensor([213]))
    assert output.ctc_logits is not None
    assert output.ctc_lengths is not None
    assert tiny.relative_difference(output.ctc_logits, theirs) < 1e-9
    assert tiny.relative_difference(without_projector, theirs) < 1e-9
    assert output.ctc_lengths.tolist() == [213]
    assert encoder.ctc_text([104, 105]) == "hi"


def test_only_the_encoder_and_projector_are_loaded(granite_folder: Path) -> None:
    full, encoder = full_model(granite_folder), load(granite_folder)
    assert count(encoder) == count(full.model.encoder) + count(full.model.projector)
    assert count(encoder) < count(full)
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in encoder.parameters())
    assert not encoder.training


def test_published_and_present_names_both_load(granite_folder: Path, tmp_path: Path) -> None:
    other = copy_with_weights(granite_folder, tmp_path / "other", names_in_memory)
    assert "encoder.input_linear.weight" in load_file(granite_folder / WEIGHTS)
    assert "model.encoder.input_linear.weight" in load_file(other / WEIGHTS)
    (clip,) = tiny.random_clips([47])
    assert torch.equal(alone(load(other), clip), alone(load(granite_folder), clip))


def test_a_sharded_checkpoint_is_the_same_model(granite_folder: Path, sharded_folder: Path) -> None:
    assert len(list(sharded_folder.glob("*.safetensors"))) > 3
    (clip,) = tiny.random_clips([47])
    assert torch.equal(alone(load(sharded_folder), clip), alone(load(granite_folder), clip))
    references = [find_model(folder) for folder in (granite_folder, sharded_folder)]
    assert len({encoder_fingerprint(reference, load_model_config(reference)) for reference in references}) == 1


def test_shards_of_the_language_model_alone_are_never_opened(sharded_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "part"
    shutil.copytree(sharded_folder, folder)
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    needed = {shard for key, shard in weight_map.items() if key.startswith(("encoder.", "projector."))}
    unneeded = sorted(set(weight_map.values()) - needed)
    assert len(unneeded) >= 2
    (folder / unneeded[0]).write_bytes(b"garbage")
    for shard in unneeded[1:]:
        (folder / shard).unlink()
    (clip,) = tiny.random_clips([47])
    assert torch.equal(alone(load(folder), clip), alone(load(sharded_folder), clip))


def test_language_model_tensors_in_the_same_file_are_not_looked_at(granite_folder: Path, tmp_path: Path) -> None:
    def without_language_model(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        kept = {key: tensor for key, tensor in weights.items() if "language_model" not in key}
        assert 0 < len(kept) < len(weights)
        return kept

    load(copy_with_weights(granite_folder, tmp_path / "part", without_language_model))


def test_a_missing_weight_is_named(granite_folder: Path, tmp_path: Path) -> None:
    def without_one(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        del weights["encoder.layers.1.attn.to_q.weight"]
        return weights

    folder = copy_with_weights(granite_folder, tmp_path / "model", without_one)
    with pytest.raises(CheckpointError, match=r"missing weights encoder\.layers\.1\.attn\.to_q\.weight"):
        load(folder)


def test_an_unexpected_weight_is_named(granite_folder: Path, tmp_path: Path) -> None:
    def with_one_more(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return weights | {"projector.surprise": torch.zeros(1)}

    folder = copy_with_weights(granite_folder, tmp_path / "model", with_one_more)
    with pytest.raises(CheckpointError, match=r"unexpected weights projector\.surprise"):
        load(folder)


def test_a_weight_of_another_shape_is_named(granite_folder: Path, tmp_path: Path) -> None:
    def with_a_wider_head(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return weights | {"encoder.out.bias": torch.zeros(129)}

    folder = copy_with_weights(granite_folder, tmp_path / "model", with_a_wider_head)
    with pytest.raises(CheckpointError, match=r"shape.*encoder\.out\.bias"):
        load(folder)


def test_a_damaged_file_is_named(granite_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(granite_folder, folder)
    whole = (folder / WEIGHTS).read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:20], b""):
        (folder / WEIGHTS).write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
            load(folder)


def test_a_missing_shard_is_named(sharded_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sharded_folder, folder)
    shard = json.loads((folder / INDEX).read_text())["weight_map"]["encoder.out.weight"]
    (folder / shard).unlink()
    with pytest.raises(CheckpointError, match=shard):
        load(folder)


def test_a_broken_index_is_named(sharded_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sharded_folder, folder)
    for broken in ("", "[]", "{}", '{"weight_map": []}'):
        (folder / INDEX).write_text(broken)
        with pytest.raises(CheckpointError, match=INDEX):
            load(folder)


def test_a_model_without_weights_is_named(granite_folder: Path, tmp_path: Path) -> None:
    shutil.copy(granite_folder / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match=WEIGHTS):
        load(tmp_path)


def test_retrained_weights_have_another_fingerprint(granite_folder: Path, tmp_path: Path) -> None:
    def retrained(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: tensor + 1e-3 if "encoder" in key else tensor for key, tensor in weights.items()}

    def other_language_model(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: tensor + 1 if "language_model" in key else tensor for key, tensor in weights.items()}

    def fingerprint(folder: Path) -> str:
        reference = find_model(folder)
        return encoder_fingerprint(reference, load_model_config(reference))

    assert fingerprint(copy_with_weights(granite_folder, tmp_path / "a", retrained)) != fingerprint(granite_folder)
    other = copy_with_weights(granite_folder, tmp_path / "b", other_language_model)
    assert fingerprint(other) == fingerprint(granite_folder)
    assert fingerprint(copy_with_weights(granite_folder, tmp_path / "c", names_in_memory)) == fingerprint(other)


@cache
def random_encoder(context_size: int = 200) -> GraniteSpeechEncoder:
    encoder = GraniteSpeechEncoder(tiny.granite_config(context_size))
    tiny.randomize(encoder, seed=2)
    return encoder.double().eval()


@settings(max_examples=40)
@example(lengths=[1, 450], padding=1e30, extra=0)
@example(lengths=[200, 199, 201], padding=float("nan"), extra=0)
@example(lengths=[400, 15, 30], padding=-1e5, extra=0)
@example(lengths=[1], padding=float("inf"), extra=449)
@given(
    lengths=st.lists(st.integers(1, 450), min_size=1, max_size=4),
    padding=st.sampled_from([0.0, 1.0, -1e5, 1e30, float("inf"), float("nan")]),
    extra=st.integers(0, 50),
)
def test_neighbours_and_padding_change_nothing(lengths: list[int], padding: float, extra: int) -> None:
    encoder = random_encoder()
    clips = tiny.random_clips(lengths)
    batch, mask = tiny.padded(clips, padding, extra)
    with torch.no_grad():
        together = encoder(batch, mask.sum(dim=1), return_ctc_logits=True)
        assert together.ctc_logits is not None
        assert together.speech_lengths.tolist() == encoder.output_lengths(torch.tensor(lengths)).tolist()
        for row, clip in enumerate(clips):
            single = encoder(clip[None], torch.tensor([len(clip)]), return_ctc_logits=True)
            assert single.ctc_logits is not None
            length = int(single.speech_lengths)
            assert length == int(together.speech_lengths[row]) == single.speech_embeddings.shape[1]
            speech, silence = together.speech_embeddings[row, :length], together.speech_embeddings[row, length:]
            assert tiny.relative_difference(speech, single.speech_embeddings[0]) < 1e-9
            assert not silence.any()
            assert tiny.relative_difference(together.ctc_logits[row, : len(clip)], single.ctc_logits[0]) < 1e-9


@settings(max_examples=15)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=2, max_size=3),
    context_size=st.sampled_from([7, 20, 32]),
)
def test_batches_are_exact_for_any_block_length(lengths: list[int], context_size: int) -> None:
    """Blocks that windows of 15 frames do not divide, and clips of several blocks."""
    encoder = random_encoder(context_size)
    clips = tiny.random_clips(lengths)
    batch, mask = tiny.padded(clips, padding=9.0)
    with torch.no_grad():
        together = encoder(batch, mask.sum(dim=1)).speech_embeddings
    for row, clip in zip(together, clips, strict=True):
        single = alone(encoder, clip)[0]
        assert tiny.relative_difference(row[: len(single)], single) < 1e-9


def test_upstream_changes_a_clip_with_its_padding(granite_folder: Path) -> None:
    """Why this encoder does not call upstream's forward; when this fails, it could."""
    full = full_model(granite_folder)
    clips = tiny.random_clips([100, 250])
    batch, _ = tiny.padded(clips)
    alone_, together = upstream(full, clips[0][None])[0], upstream(full, batch)[0]
    assert tiny.relative_difference(together[: len(alone_)], alone_) > 0.05


def test_lengths_and_rates() -> None:
    encoder = random_encoder()
    assert encoder.output_lengths(torch.tensor([1, 15, 16, 500])).tolist() == [3, 3, 6, 102]
    assert encoder.frame_rate_hz == 10
    assert encoder.ctc_frame_rate_hz == 50
    assert encoder.hidden_size == tiny.SPEECH_SIZE


def test_half_precision_keeps_batches_finite() -> None:
    """A block that is all padding has nothing to attend to, which at 16 bits must not become NaN."""
    encoder = GraniteSpeechEncoder(tiny.granite_config())
    tiny.randomize(encoder, seed=2)
    encoder = encoder.to(torch.bfloat16).eval()
    batch, mask = tiny.padded([clip.bfloat16() for clip in tiny.random_clips([10, 410])])
    with torch.no_grad():
        output = encoder(batch, mask.sum(dim=1), return_ctc_logits=True)
    assert output.ctc_logits is not None
    assert output.speech_embeddings.isfinite().all()
    assert output.ctc_logits.isfinite().all()


def test_batch_statistics_in_training_are_of_real_frames(granite_folder: Path) -> None:
    """Pretraining runs the conformer in train mode: padding must not enter its batch norm."""
    lengths = torch.tensor([40, 90])
    clips = tiny.random_clips(lengths.tolist())
    running = []
    for padding, extra in ((0.0, 0), (50.0, 60)):
        encoder = GraniteSpeechEncoder(tiny.granite_config())
        tiny.randomize(encoder, seed=2)
        encoder = encoder.double().eval()
        for module in encoder.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.train()
        with torch.no_grad():
            encoder.conformer(tiny.padded(clips, padding, extra)[0], lengths)
        running.append(torch.cat([b for name, b in encoder.named_buffers() if "running" in name]))
    assert torch.allclose(running[0], running[1], rtol=1e-9)


def test_compiled_blocks_give_what_uncompiled_ones_give() -> None:
    """One graph without breaks serves both blocks and these lengths. A GPU's own compiler is not tested here."""
    encoder, compiled = random_encoder(), GraniteSpeechEncoder(tiny.granite_config())
    tiny.randomize(compiled, seed=2)
    compiled = compiled.double().eval()
    graphs = CompileCounter()
    compiled.compile(fullgraph=True, backend=graphs)
    for lengths in ([450, 10], [3, 700, 200]):
        batch, mask = tiny.padded(tiny.random_clips(lengths), padding=9.0)
        with torch.no_grad():
            theirs, ours = (each(batch, mask.sum(dim=1)).speech_embeddings for each in (encoder, compiled))
        assert tiny.relative_difference(ours, theirs) < 1e-9
    assert graphs.frame_count == 1
