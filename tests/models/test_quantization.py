"""8-bit models: close to the whole ones, smaller, and as indifferent to their neighbours."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from asr_doge.errors import ConfigError
from asr_doge.inference.transcription import Transcriber
from asr_doge.models import LoadedModel, load_model, quantization
from asr_doge.models.checkpoints import find_model, load_model_config
from asr_doge.models.language_model import load_language_model
from asr_doge.models.quantization import SMALLEST, Int8Linear, quantize_linear_layers
from asr_doge.models.quantization import integers_are_fast as of_this_cpu
from tests.models import tiny


@pytest.fixture(params=[True, False], ids=["integers", "floating"], autouse=True, scope="module")
def _products(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever this processor is good at, both ways to multiply."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantization, "integers_are_fast", lambda: request.param)
        yield


@pytest.fixture(scope="module")
def quantized_nano() -> LoadedModel:
    return load_model("nano", device="cpu", quantization="int8")


def linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias)
    tiny.randomize(layer, seed=3)
    return layer


def rounded(layer: nn.Linear) -> Int8Linear:
    return Int8Linear(layer.weight.detach(), layer.bias)


def bytes_of(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in [*module.parameters(), *module.buffers()])


@given(inputs=st.integers(32, 200), outputs=st.integers(32, 200), loudness=st.floats(1e-6, 1e6), bias=st.booleans())
def test_a_layer_is_within_two_percent_of_the_whole_one(inputs: int, outputs: int, loudness: float, bias: bool) -> None:
    layer = linear(inputs, outputs, bias)
    if bias:
        layer.bias.data *= loudness
    (x,) = tiny.random_clips([7], inputs)
    x = loudness * x.float()
    with torch.no_grad():
        whole, small = layer(x[None]), rounded(layer)(x[None])
    assert small.shape == whole.shape
    assert (small - whole).norm() < 0.02 * whole.norm()


def test_a_row_is_rounded_by_itself() -> None:
    layer = rounded(linear(64, 48))
    (quiet, loud) = (clip.float() for clip in tiny.random_clips([1, 3], 64))
    together = layer(torch.cat([1e-3 * quiet, 1e3 * loud]))
    torch.testing.assert_close(together[:1], layer(1e-3 * quiet), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at_once", [1, 150, 10**6])
def test_floating_products_are_those_of_the_rounded_weights(
    dtype: torch.dtype, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many weights are converted at once; 47 rows of 64 are no multiple of any."""
    monkeypatch.setattr(quantization, "integers_are_fast", lambda: False)
    monkeypatch.setattr(quantization, "_WEIGHTS_AT_ONCE", at_once)
    layer = rounded(linear(64, 47))
    assert layer.bias is not None
    (x,) = (clip.to(dtype) for clip in tiny.random_clips([5], 64))
    expected = x.double() @ (layer.weight.double() * layer.scale.double()[:, None]).T + layer.bias.double()
    found = layer(x)
    assert found.dtype == dtype
    assert tiny.relative_difference(found.double(), expected) < (1e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="the system does not list what its processor can do")
def test_integers_are_used_where_the_processor_has_instructions_for_them() -> None:
    """As the kernel lists them."""
    assert of_this_cpu() == ("avx512_vnni" in Path("/proc/cpuinfo").read_text().split())


def test_silence_gives_the_bias() -> None:
    layer = linear(64, 48)
    assert torch.equal(rounded(layer)(torch.zeros(2, 64)), layer.bias.detach().expand(2, -1))


def test_only_large_matrices_are_rounded() -> None:
    module = nn.Sequential(
        nn.Linear(64, 64),
        nn.Linear(64, SMALLEST - 1),
        nn.Conv1d(64, 64, 1),
        nn.Conv1d(64, 64, 3),
        nn.Conv1d(64, 64, 1, groups=64),
        nn.Sequential(nn.Embedding(64, 64), nn.Linear(64, 64)),
    )
    quantize_linear_layers(module)
    layers = list(module.children())
    is_small = [isinstance(layer, Int8Linear) for layer in layers[:5]]
    assert is_small == [True, False, True, False, False]
    assert isinstance(layers[5].get_submodule("1"), Int8Linear)
    assert isinstance(layers[5].get_submodule("0"), nn.Embedding)


def test_the_bundled_model_hears_the_same(quantized_nano: LoadedModel) -> None:
    whole = load_model("nano", device="cpu")
    (clip,) = tiny.random_clips([150])
    embeddings = []
    for loaded in (whole, quantized_nano):
        output = loaded.model.encode(clip[None], torch.ones(1, 150, dtype=torch.long))
        embeddings.append(output.speech_embeddings.flatten())
    assert torch.cosine_similarity(embeddings[0], embeddings[1], dim=0) > 0.98
    for part in ("encoder", "language_model"):
        assert bytes_of(getattr(quantized_nano.model, part)) < 0.5 * bytes_of(getattr(whole.model, part))


def test_neighbours_change_nothing(quantized_nano: LoadedModel) -> None:
    def encode(clips: list[Tensor]) -> Tensor:
        batch, mask = tiny.padded(clips)
        return quantized_nano.model.encode(batch.float(), mask).speech_embeddings

    clips = tiny.random_clips([40, 210, 333])
    together = encode(clips)
    for row, clip in zip(together, clips, strict=True):
        single = encode([clip])[0]
        # Sums in another order may fall on the other side of a rounding step, which is 1/127 of a row's greatest.
        assert tiny.relative_difference(row[: len(single)], single) < 0.1


def test_batches_change_no_text(quantized_nano: LoadedModel) -> None:
    waveforms = [tiny.random_waveform(seconds, seed=5) for seconds in (0.7, 1.3)]
    transcriber = Transcriber(quantized_nano)
    together = [result.text for result in transcriber.transcribe(waveforms)]
    assert together == [transcriber.transcribe([waveform])[0].text for waveform in waveforms]


def test_rounded_weights_are_never_taken_for_whole_ones(quantized_nano: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="without quantization"):
        quantized_nano.save(tmp_path / "checkpoint")


@pytest.mark.parametrize("is_alone", [False, True])
def test_published_names_load_in_8_bits(is_alone: bool, tmp_path: Path) -> None:
    model = tiny.doge_model(64)
    (model.model if is_alone else model).save_pretrained(tmp_path)
    reference = find_model(tmp_path)
    quantized = load_language_model(reference, load_model_config(reference), torch.float32, "int8")
    tokens = torch.arange(9)[None]
    with torch.no_grad():
        whole, rounded_ = model(tokens).logits, quantized(tokens).logits
    assert (whole - rounded_).norm() < 0.2 * whole.norm()
    head = quantized.get_output_embeddings()
    assert isinstance(head, Int8Linear)  # though it is the token embedding, which is not rounded
    embedding = quantized.get_parameter("model.embed_tokens.weight")
    assert torch.equal(embedding, model.lm_head.weight)
    assert (head.weight * head.scale[:, None] - embedding).abs().max() <= 0.51 * head.scale.max()


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="none, int8"):
        load_model("nano", quantization="int3")  # type: ignore[arg-type]
