"""Passes and time of greedy search, draft verification and the original's loop without a cache.

Example:
    OMP_NUM_THREADS=1 python bench/decode.py nano --manifest digit_strings/test.jsonl
    OMP_NUM_THREADS=1 python bench/decode.py published
    OMP_NUM_THREADS=1 python bench/decode.py published --dtype bf16

`nano` writes the texts of a manifest with the bundled model, and drafts also at several acceptance thresholds.
`published` has Doge-320M's shapes and random weights; its scores are forced to spell a text of its own choice, since
random weights say nothing, and in its drafts a share of the tokens is replaced by others.

Promises: the time is the language model's (and the adapter's) for one utterance at a time. On one thread it is the
processor's, which other work on the machine hardly lengthens; on several (OMP_NUM_THREADS=2) it is the clock's, for an
idle machine. Texts are compared with greedy's.
It does not measure the encoder, which has run before, nor batches.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LogitsProcessorList, PreTrainedConfig

from asr_doge.audio.reading import read_audio
from asr_doge.data.manifest import read_manifest
from asr_doge.decoding.ctc import ctc_greedy_texts
from asr_doge.decoding.decoders import EXTRA_TOKENS, TOKENS_PER_DRAFT_TOKEN
from asr_doge.decoding.draft import AddBias, Verifier
from asr_doge.errors import ASRDogeError
from asr_doge.models import ASRDogeConfig, ASRDogeForConditionalGeneration, load_model
from asr_doge.models.configuration_asr_doge import published_encoder_config
from asr_doge.models.encoders import SpeechEncoderOutput
from asr_doge.models.loading import TORCH_TYPES
from asr_doge.models.quantization import quantize_linear_layers
from asr_doge.text.normalization import normalize_training_text
from asr_doge.text.scoring import score

THRESHOLDS = (0.3, 0.1, 0.03)
SPEECH_EMBEDDINGS, PROMPT_TOKENS, TEXT_TOKENS = 100, 8, 40
"""Of the published sizes: 10 s of speech, the prompt, and about as many tokens as are said in that time."""
AGREEMENTS = (1.0, 0.95, 0.8)
DRAFTS = 4
CERTAIN = 1e4


@dataclass(frozen=True)
class Utterance:
    """What one utterance is written from.

    Attributes:
        speech: what the encoder heard.
        draft: tokens.
        limit: the most tokens of its text, as when transcribing.
        forced: a bias that spells a text, if any.
    """

    speech: SpeechEncoderOutput
    draft: list[int]
    limit: int
    forced: AddBias | None = None


Write = Callable[[Utterance], tuple[list[int], int]]
"""Tokens of an utterance, and how many times the language model ran."""


@dataclass(frozen=True)
class Line:
    """A line of the table: means over utterances."""

    decoder: str
    passes: float
    milliseconds: float
    same_as_greedy: float
    wer: float | None = None


def main() -> int:
    """Measure, print a table, and write it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=["nano", "published"])
    parser.add_argument("--manifest", type=Path, help="for nano: recordings and their texts")
    parser.add_argument("--model", default="nano", help="for nano: another checkpoint (default: nano)")
    parser.add_argument("--utterances", type=int, default=100, help="for nano: at most so many (default: 100)")
    parser.add_argument("--dtype", choices=list(TORCH_TYPES), default="fp32", help="for published (default: fp32)")
    parser.add_argument("--int8", action="store_true", help="for published: matrices in 8 bits")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    flags = parser.parse_args()
    if flags.which == "nano" and flags.manifest is None:
        parser.error("nano needs --manifest")
    try:
        lines = (
            measure_published(TORCH_TYPES[flags.dtype], flags.int8)
            if flags.which == "published"
            else measure_nano(flags.model, flags.manifest, flags.utterances)
        )
    except ASRDogeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("| decoder | passes | ms | as greedy | WER |\n|---|---|---|---|---|")
    for line in lines:
        wer = "" if line.wer is None else f"{100 * line.wer:.1f} %"
        same = f"{100 * line.same_as_greedy:.0f} %"
        print(f"| {line.decoder} | {line.passes:.1f} | {line.milliseconds:.1f} | {same} | {wer} |")
    if flags.output:
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        report: dict[str, object] = {"machine": platform.machine(), "date": date, "threads": torch.get_num_threads()}
        report["lines"] = [asdict(line) for line in lines]
        flags.output.write_text(json.dumps(report, indent=2))
    return 0


@torch.inference_mode()
def measure_nano(name: str, manifest: Path, most: int) -> list[Line]:
    """Every decoder on the recordings of a manifest, with the drafts of the CTC head."""
    loaded = load_model(name, device="cpu")
    tokenizer = loaded.processor.tokenizer
    eos = frozenset([tokenizer.eos_token_id])
    recordings = read_manifest(manifest)[:most]
    utterances = []
    for recording in recordings:
        speech = loaded.speech_encoder.encode([read_audio(recording.audio_path)], return_ctc_logits=True)
        assert speech.ctc_logits is not None
        assert speech.ctc_lengths is not None
        draft = ctc_greedy_texts(loaded.model.encoder, speech.ctc_logits, speech.ctc_lengths)[0]
        tokens = loaded.processor.text_ids(normalize_training_text(draft))[:-1].tolist()
        utterances.append(Utterance(speech, tokens, EXTRA_TOKENS + TOKENS_PER_DRAFT_TOKEN * len(tokens)))

    def verify(threshold: float | None) -> Write:
        return _verify(Verifier(loaded.model, eos, tokenizer.convert_ids_to_tokens, threshold))

    decoders: dict[str, Write] = {
        "greedy, KV cache": _greedy(loaded.model, eos),
        "the original's loop, no cache": _uncached(loaded.model, eos),
        "draft": verify(None),
        **{f"draft, --accept_threshold {threshold}": verify(threshold) for threshold in THRESHOLDS},
    }
    references = [recording.text for recording in recordings]
    truth: list[list[int]] = []
    lines = []
    for what, write in decoders.items():
        texts, line = _measure(what, write, utterances, truth)
        truth = truth or texts
        wer = score(references, loaded.processor.batch_decode(_padded(texts, tokenizer.pad_token_id))).wer
        lines.append(Line(**asdict(line) | {"wer": wer}))
    return lines


@torch.inference_mode()
def measure_published(dtype: torch.dtype, int8: bool) -> list[Line]:
    """Every decoder at the published sizes, with drafts that agree more or less with what the scores spell."""
    torch.manual_seed(0)
    encoder_config = published_encoder_config()
    assert isinstance(encoder_config.encoder_config, PreTrainedConfig)
    encoder_config.encoder_config.num_layers = 1  # it does not run
    model = ASRDogeForConditionalGeneration(
        ASRDogeConfig(encoder_config=encoder_config, prompt_ids=list(range(10, 10 + PROMPT_TOKENS)))
    )
    nn.Module.to(model, dtype)
    if int8:
        quantize_linear_layers(model)
    vocabulary = model.config.text_config.vocab_size
    eos = model.config.text_config.eos_token_id
    text = [*torch.randint(3, vocabulary, (TEXT_TOKENS,)).tolist(), eos]
    length = torch.tensor([SPEECH_EMBEDDINGS])
    speech = SpeechEncoderOutput(torch.randn(1, SPEECH_EMBEDDINGS, model.encoder.hidden_size, dtype=dtype), length)

    def force(logits: Tensor, before: Sequence[int], between: Sequence[int]) -> Tensor:
        wanted = torch.tensor(text[len(before) : len(before) + len(between) + 1])
        forced = logits.clone()
        forced[torch.arange(len(wanted)), wanted] += CERTAIN
        return forced

    def drafted(agreement: float) -> Utterance:
        draft = text[:-1]
        for place in torch.randperm(TEXT_TOKENS)[: round((1 - agreement) * TEXT_TOKENS)].tolist():
            draft[place] = int(torch.randint(3, vocabulary, ()))
        return Utterance(speech, draft, 2 * TEXT_TOKENS, force)

    eos_ids = frozenset([eos])
    verify = _verify(Verifier(model, eos_ids, lambda token: chr(0x4E00 + token)))
    _measure("warm-up", verify, [drafted(1.0)], [])
    lines = []
    for what, write in (("greedy, KV cache", _greedy), ("the original's loop, no cache", _uncached)):
        lines.append(_measure(what, write(model, eos_ids), [drafted(1.0)], [text])[1])
    for agreement in AGREEMENTS:
        utterances = [drafted(agreement) for _ in range(DRAFTS)]
        lines.append(
            _measure(f"draft, {100 * agreement:.0f} % of its tokens agree", verify, utterances, [text] * DRAFTS)[1]
        )
    return lines


def _measure(
    what: str, write: Write, utterances: Sequence[Utterance], truth: Sequence[Sequence[int]]
) -> tuple[list[list[int]], Line]:
    """Texts of utterances, and the line of the table that they make; without `truth` they are it themselves."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    texts, passes, seconds = [], [], []
    for utterance in utterances:
        start = clock()
        text, count = write(utterance)
        seconds.append(clock() - start)
        texts.append(text)
        passes.append(count)
    same = [text == list(wanted) for text, wanted in zip(texts, truth or texts, strict=True)]
    mean = statistics.fmean
    return texts, Line(what, mean(passes), 1000 * mean(seconds), mean(same))


def _verify(verifier: Verifier) -> Write:
    """Draft verification."""

    def write(utterance: Utterance) -> tuple[list[int], int]:
        written = verifier.decode(utterance.speech, [utterance.draft], [utterance.limit], [utterance.forced])[0]
        return written.tokens, written.passes

    return write


def _greedy(model: ASRDogeForConditionalGeneration, eos: frozenset[int]) -> Write:
    """Transformers' greedy search with its cache."""

    def write(utterance: Utterance) -> tuple[list[int], int]:
        forced = utterance.forced
        processors = LogitsProcessorList(
            [lambda ids, scores: forced(scores, ids[0].tolist(), [])] if forced is not None else []
        )
        tokens = model.generate(
            speech_embeddings=utterance.speech.speech_embeddings,
            max_new_tokens=utterance.limit,
            eos_token_id=list(eos),
            num_beams=1,
            logits_processor=processors,
        )[0].tolist()
        return tokens, len(tokens)

    return write


def _uncached(model: ASRDogeForConditionalGeneration, eos: frozenset[int]) -> Write:
    """The whole prefix anew for every token, as the original did."""

    def write(utterance: Utterance) -> tuple[list[int], int]:
        tokens: list[int] = []
        while len(tokens) < utterance.limit and not (tokens and tokens[-1] in eos):
            labels = torch.tensor([tokens]) if tokens else None
            logits = model(speech_embeddings=utterance.speech.speech_embeddings, labels=labels).logits[0, -1:]
            if utterance.forced is not None:
                logits = utterance.forced(logits, tokens, [])
            tokens.append(int(logits.argmax()))
        return tokens, len(tokens)

    return write


def _padded(texts: Sequence[Sequence[int]], padding: int) -> list[list[int]]:
    longest = max(map(len, texts))
    return [[*text, *[padding] * (longest - len(text))] for text in texts]


if __name__ == "__main__":
    sys.exit(main())
