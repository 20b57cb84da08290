"""The adapter: maps speech embeddings to the language model's token embedding space. It is always trained.

Promises: an output embedding depends only on `stack` neighbouring speech embeddings of the same clip (`conv`: also on
the `stack` before and after them), so padding and neighbours in the batch cannot affect it.
It does not know where its input comes from or how its output is used.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asr_doge.models.configuration_asr_doge import ASRDogeConfig
from asr_doge.models.encoders import length_mask


class Adapter(nn.Module):
    """Frame stacking, the layers that `adapter_type` names, and an optional norm.

    Published form: 2048 → 512 → 1024 with GELU, 1,574,400 parameters.
    """

    def __init__(self, config: ASRDogeConfig, speech_size: int, text_size: int) -> None:
        """Create it with random weights.

        Args:
            config: gives `adapter_type`, `adapter_hidden_dim`, `adapter_stack` and `adapter_output_norm`.
            speech_size: width of the speech embeddings.
            text_size: width of the language model's token embeddings.
        """
        super().__init__()
        self.stack: int = config.adapter_stack
        stacked_size = speech_size * self.stack
        layers: list[nn.Module]
        hidden_dim: int = config.adapter_hidden_dim
        if config.adapter_type == "linear":
            layers = [nn.Linear(stacked_size, text_size)]
        else:
            first = {
                "mlp": lambda: nn.Linear(stacked_size, hidden_dim),
                "conv": lambda: _Neighbours(stacked_size, hidden_dim),
                "qformer": lambda: _Query(speech_size, self.stack, hidden_dim),
            }[config.adapter_type]()
            layers = [first, nn.GELU(), nn.Linear(hidden_dim, text_size)]
        self.layers = nn.Sequential(*layers)
        self.norm = _OutputNorm(text_size, eps=1e-6) if config.adapter_output_norm else nn.Identity()

    def forward(self, speech_embeddings: Tensor, speech_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Adapt a padded batch.

        Args:
            speech_embeddings: `[B, T', D]`.
            speech_lengths: `[B]`.

        Returns:
            `[B, ceil(T' / stack), text_size]` and its lengths `[B]`.
        """
        mask = length_mask(speech_lengths, speech_embeddings.shape[1])
        # Zeros complete a clip's last group and fill the rest, whatever the batch's padding contains.
        speech_embeddings = speech_embeddings.masked_fill(~mask[..., None], 0.0)
        if self.stack > 1:
            speech_embeddings = F.pad(speech_embeddings, (0, 0, 0, -speech_embeddings.shape[1] % self.stack))
            batch, frames, size = speech_embeddings.shape
            speech_embeddings = speech_embeddings.reshape(batch, frames // self.stack, size * self.stack)
            speech_lengths = (speech_lengths + self.stack - 1) // self.stack
        return self.norm(self.layers(speech_embeddings)), speech_lengths

    @torch.no_grad()
    def scale_output(self, factor: float) -> None:
        """Make the output `factor` times as loud."""
        last = self.norm if isinstance(self.norm, nn.RMSNorm) else self.layers[-1]
        for parameter in last.parameters():
            parameter.mul_(factor)

    @torch.no_grad()
    def match_scale(self, token_embeddings: Tensor) -> None:
        """Set the output norm to the scale of `token_embeddings` `[V, text_size]`; without a norm do nothing.

        A norm of weight 1 gives far larger values than embeddings of standard deviation 0.02, and an adapter without
        norm far smaller ones than embeddings of 1. In both cases training would first have to correct the scale.
        """
        if isinstance(self.norm, nn.RMSNorm):
            self.norm.weight.fill_(float(token_embeddings.float().square().mean().sqrt()))


class _OutputNorm(nn.RMSNorm):
    """A norm that computes in its weight's type where autocast gives bfloat16, in one kernel.

    Torch computes in that type too, but 2.11 did so in several kernels.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class _Neighbours(nn.Module):
    """A convolution of width 3 over `[B, N, size]`, with zeros before and after a clip."""

    def __init__(self, size: int, hidden_dim: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(size, hidden_dim, kernel_size=3, padding=1)

    def forward(self, groups: Tensor) -> Tensor:
        return self.convolution(groups.transpose(1, 2)).transpose(1, 2)


class _Query(nn.Module):
    """A learned query that reads each group of `stack` embeddings by attention, with position embeddings."""

    def __init__(self, size: int, stack: int, hidden_dim: int) -> None:
        super().__init__()
        self.stack = stack
        self.project = nn.Linear(size, hidden_dim)
        self.positions = nn.Parameter(torch.randn(stack, hidden_dim) * hidden_dim**-0.5)
        self.query = nn.Parameter(torch.randn(hidden_dim) * hidden_dim**-0.5)
        heads = next(heads for heads in (4, 2, 1) if hidden_dim % heads == 0)
        self.attention = nn.MultiheadAttention(hidden_dim, heads, batch_first=True)

    def forward(self, groups: Tensor) -> Tensor:
        batch, count, size = groups.shape
        embeddings = self.project(groups.reshape(batch * count, self.stack, size // self.stack)) + self.positions
        query = self.query.expand(batch * count, 1, -1)
        read, _ = self.attention(query, embeddings, embeddings, need_weights=False)
        return (read + query).reshape(batch, count, -1)
