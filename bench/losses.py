"""Losses beside the cross-entropy of the text, tried on nano: CTC on the adapter's output, and distillation.

Example (cached digit strings, minutes on one core):
    OMP_NUM_THREADS=1 python bench/losses.py --data_dir ./strings/processed

Promises: every row trains the same adapter from the same start on the same batches, with the optimizer and schedule of
the published recipe; dev loss is the cross-entropy alone. Neither loss is part of `asr-doge train`: docs/training.md
says why. It does not know other models than nano.
"""

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import get_linear_schedule_with_warmup

from asr_doge.data.feature_cache import FeatureCache
from asr_doge.data.manifest import Utterance, read_manifest, sample_utterances
from asr_doge.models import LoadedModel, assemble_model
from asr_doge.models.layout import IGNORED_LABEL
from asr_doge.text.scoring import score
from asr_doge.training.datasets import CachedSpeechDataset, collate_examples

BATCH_SIZE, LEARNING_RATE, WARMUP_STEPS = 16, 2e-3, 30
LONGEST_SECONDS = 4.5
"""Longer strings are left out, to be quick."""
DEV_UTTERANCES, MAX_NEW_TOKENS = 120, 24


@dataclass(frozen=True)
class Step:
    """What a further loss may look at: a batch, as far as it has been computed."""

    loaded: LoadedModel
    speech: Tensor
    """`[B, T, D]`, out of the adapter."""
    lengths: Tensor
    """`[B]`"""
    texts: Sequence[Tensor]
    """Token ids `[L]` of each row, the end of sequence last."""
    logits: Sequence[Tensor]
    """`[L, V]` of each row: what the language model expects in the place of each of them."""


class CTC(nn.Module):
    """CTC of the text's tokens on the adapter's output, by the language model's own head or by one for this alone."""

    def __init__(self, loaded: LoadedModel, *, own_head: bool) -> None:
        super().__init__()
        embeddings = loaded.model.get_input_embeddings().weight
        self.head = nn.Linear(embeddings.shape[1], len(embeddings) + 1 if own_head else 1)  # the last one is the blank
        self.own_head = own_head

    def forward(self, step: Step) -> Tensor:
        """The loss of a batch."""
        scores = self.head(step.speech)
        if not self.own_head:
            language_model = step.loaded.model.language_model
            spelled = language_model.get_output_embeddings()(
                language_model.base_model.get_submodule("norm")(step.speech)
            )
            scores = torch.cat([spelled, scores], dim=-1)
        texts = [text[:-1] for text in step.texts]
        lengths = torch.tensor([len(text) for text in texts])
        log_probs = scores.log_softmax(-1).transpose(0, 1)
        blank = scores.shape[-1] - 1
        return F.ctc_loss(log_probs, torch.cat(texts), step.lengths, lengths, blank, zero_infinity=True)


class Distillation(nn.Module):
    """What the language model expects when it reads the text itself in the place of the speech."""

    def forward(self, step: Step) -> Tensor:
        """The loss of a batch: the mean divergence at a token."""
        divergences = []
        for text, logits in zip(step.texts, step.logits, strict=True):
            prompt = step.loaded.processor.prompt_ids()
            ids = torch.cat([prompt, text[:-1], text])
            with torch.no_grad():
                expected = step.loaded.model.language_model(input_ids=ids[None], use_cache=False).logits[0]
            expected = expected[-len(text) - 1 : -1].log_softmax(-1)
            divergence = F.kl_div(logits.log_softmax(-1), expected, log_target=True, reduction="none")
            divergences.append(divergence.sum(-1))
        return torch.cat(divergences).mean()


ROWS: dict[str, tuple[float, Callable[[LoadedModel], nn.Module] | None]] = {
    "cross-entropy": (0.0, None),
    "and 0.1 CTC, the language model's head": (0.1, lambda loaded: CTC(loaded, own_head=False)),
    "and 0.3 CTC, the language model's head": (0.3, lambda loaded: CTC(loaded, own_head=False)),
    "and 0.3 CTC, a head of its own": (0.3, lambda loaded: CTC(loaded, own_head=True)),
    "and 0.3 distillation": (0.3, lambda loaded: Distillation()),
}


def train(
    loaded: LoadedModel, examples: CachedSpeechDataset, further: nn.Module | None, weight: float, steps: int
) -> None:
    """Train the adapter, and what the further loss has of its own."""
    model = loaded.model.train()
    adapted: list[tuple[Tensor, Tensor]] = []
    hook = model.adapter.register_forward_hook(lambda _, __, output: adapted.append(output))
    parameters = [*model.adapter.parameters(), *(further.parameters() if further is not None else [])]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, WARMUP_STEPS, steps)
    shuffle = random.Random(0)
    order: list[int] = []
    for _ in tqdm(range(steps), leave=False):
        if len(order) < BATCH_SIZE:
            order += shuffle.sample(range(len(examples)), len(examples))
        batch = collate_examples([examples[order.pop()] for _ in range(BATCH_SIZE)])
        output = model(**batch)
        loss = output.loss
        if further is not None:
            texts = [row[row != IGNORED_LABEL] for row in batch["labels"]]
            # Rows end together: the last prediction is of what follows the text.
            logits = [row[-len(text) - 1 : -1] for row, text in zip(output.logits, texts, strict=True)]
            loss = loss + weight * further(Step(loaded, *adapted[-1], texts, logits))
        adapted.clear()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    hook.remove()


@torch.no_grad()
def evaluate(loaded: LoadedModel, cache: FeatureCache, utterances: Sequence[Utterance]) -> tuple[float, float]:
    """Dev loss, the mean over all tokens, and CER."""
    model = loaded.model.eval()
    examples = CachedSpeechDataset(utterances, loaded.processor, cache)
    losses, tokens, texts = 0.0, 0, []
    for start in range(0, len(examples), BATCH_SIZE):
        batch = collate_examples([examples[i] for i in range(start, min(start + BATCH_SIZE, len(examples)))])
        count = int((batch["labels"] != IGNORED_LABEL).sum())
        losses, tokens = losses + float(model(**batch).loss) * count, tokens + count
        del batch["labels"]
        texts += loaded.processor.batch_decode(model.generate(**batch, max_new_tokens=MAX_NEW_TOKENS))
    return losses / tokens, score([utterance.text for utterance in utterances], texts).cer


def main() -> int:
    """Train, measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="processed digit strings, with their features")
    parser.add_argument("--steps", type=int, default=200, help="of the optimizer (default 200)")
    parser.add_argument("--seeds", type=int, default=2, help="starts of the adapter (default 2)")
    flags = parser.parse_args()
    cache = FeatureCache.open(str(flags.data_dir / "features"))
    utterances = read_manifest(flags.data_dir / "train_manifest.json")
    utterances = [utterance for utterance in utterances if utterance.duration <= LONGEST_SECONDS]
    dev = sample_utterances(read_manifest(flags.data_dir / "dev_manifest.json"), DEV_UTTERANCES)
    print("| loss | dev loss | dev CER % |\n|---|---|---|")
    for name, (weight, make) in ROWS.items():
        found = []
        for seed in range(flags.seeds):
            torch.manual_seed(seed)
            loaded = assemble_model("nano/encoder", "nano/language_model", adapter_hidden_dim=256, device="cpu")
            examples = CachedSpeechDataset(utterances, loaded.processor, cache)
            train(loaded, examples, make(loaded) if make is not None else None, weight, flags.steps)
            found.append(evaluate(loaded, cache, dev))
        losses, errors = zip(*found, strict=True)
        print(
            f"| {name} | {', '.join(f'{loss:.3f}' for loss in losses)} |"
            f" {', '.join(f'{100 * error:.1f}' for error in errors)} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
