"""The adapter: its published size, frame stacking, and the loudness of its output."""

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_doge.choices import AdapterType
from asr_doge.models import ASRDogeConfig
from asr_doge.models.adapters import Adapter
from tests.models import tiny


def adapter(stack: int = 1, norm: bool = False, kind: str = "mlp") -> Adapter:
    config = ASRDogeConfig(adapter_type=kind, adapter_hidden_dim=16, adapter_stack=stack, adapter_output_norm=norm)
    made = Adapter(config, speech_size=6, text_size=8).double()
    tiny.randomize(made, seed=3)
    return made


def test_the_published_adapter_has_the_published_size() -> None:
    made = Adapter(ASRDogeConfig(), speech_size=2048, text_size=1024)
    assert sum(parameter.numel() for parameter in made.parameters()) == 1_574_400


@settings(max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    stack=st.integers(1, 4),
    norm=st.booleans(),
    kind=st.sampled_from(get_args(AdapterType)),
    padding=st.sampled_from([0.0, 7.0, float("nan")]),
)
def test_a_batch_is_its_clips(lengths: list[int], stack: int, norm: bool, kind: str, padding: float) -> None:
    made = adapter(stack, norm, kind)
    clips = tiny.random_clips(lengths, size=6)
    batch, mask = tiny.padded(clips, padding)
    together, together_lengths = made(batch, mask.sum(dim=1))
    assert together_lengths.tolist() == [-(-length // stack) for length in lengths]
    for row, length, clip in zip(together, together_lengths.tolist(), clips, strict=True):
        single, single_length = made(clip[None], torch.tensor([len(clip)]))
        assert single.shape == (1, length, 8)
        assert int(single_length) == length
        assert torch.allclose(row[:length], single[0], rtol=1e-12, atol=1e-12)


def test_stacking_joins_neighbours_and_completes_the_last_with_zeros() -> None:
    made = adapter(stack=3, kind="linear")
    (clip,) = tiny.random_clips([4], size=6)
    output, _ = made(clip[None], torch.tensor([4]))
    first = made.layers(clip[:3].reshape(1, 18))
    last = made.layers(torch.cat([clip[3], torch.zeros(12, dtype=torch.float64)])[None])
    assert torch.allclose(output[0], torch.cat([first, last]))


@pytest.mark.parametrize("scale", [0.02, 1.0])
def test_the_output_norm_starts_as_loud_as_token_embeddings(scale: float) -> None:
    made = adapter(norm=True)
    embeddings = scale * torch.randn(500, 8)
    made.match_scale(embeddings)
    (clip,) = tiny.random_clips([200], size=6)
    output, _ = made(100 * clip[None], torch.tensor([200]))
    assert float(output.detach().square().mean().sqrt()) == pytest.approx(scale, rel=0.1)


def test_without_a_norm_there_is_nothing_to_scale() -> None:
    made = adapter()
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    made.match_scale(torch.ones(5, 8))
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())


def test_the_output_norm_is_one_kernel_in_mixed_precision(recwarn: pytest.WarningsRecorder) -> None:
    """Torch warns where types differ and it computes in several; the result is the arithmetic of float32, rounded."""
    made = adapter(norm=True).float()
    assert isinstance(made.norm, torch.nn.RMSNorm)
    torch.nn.init.normal_(made.norm.weight)
    (clip,) = tiny.random_clips([20], size=6)
    torch.set_warn_always(True)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            output, _ = made(clip[None].float(), torch.tensor([20]))
            before = made.layers(clip[None].float())
    finally:
        torch.set_warn_always(False)
    assert not [warning for warning in recwarn if "Mismatch dtype" in str(warning.message)]
    assert output.dtype == before.dtype == torch.bfloat16
    wide = before.float()
    expected = wide * (wide.square().mean(dim=-1, keepdim=True) + 1e-6).rsqrt() * made.norm.weight
    assert torch.allclose(output.float(), expected, rtol=2**-8)
