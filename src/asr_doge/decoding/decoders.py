"""The decoders: from the encoder's output to texts, under one interface.

Promises: `build_decoder` gives the decoder that a configuration names, or says in one line why it cannot; every decoder
gives the hypotheses of each clip, best first, and they do not depend on the other clips.
It does not know audio, times or guards (see `asr_doge.decoding.recognition`). Greedy and beam search over the language
model are transformers' own.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast, get_args

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from asr_doge.decoding.configuration import DecoderName, DecodingConfig
from asr_doge.decoding.ctc import ctc_greedy_texts, ctc_log_posteriors
from asr_doge.decoding.draft import Verifier
from asr_doge.decoding.fusion import MARGIN, SearchResult, prefix_beam_search, search_together
from asr_doge.decoding.hotwords import HotwordBias, HotwordLogitsProcessor
from asr_doge.decoding.language_model_scorer import LanguageModelScorer
from asr_doge.errors import ConfigError
from asr_doge.models import LoadedEncoder, LoadedModel
from asr_doge.models.encoders import SpeechEncoderOutput, length_mask
from asr_doge.models.layout import IGNORED_LABEL
from asr_doge.models.loading import MAX_NEW_TOKENS
from asr_doge.models.lora import without_lora
from asr_doge.text.normalization import normalize_training_text

TOKENS_PER_DRAFT_TOKEN, EXTRA_TOKENS = 2, 16
"""A text may have `TOKENS_PER_DRAFT_TOKEN` tokens for each token of its draft, plus `EXTRA_TOKENS`."""
TOKENS_PER_SECOND = 15
"""Without a draft, the tokens for each second of speech: three times what fast speakers need with a tokenizer of words
and subwords, and about what they need with one of characters."""
TRAIN_A_HEAD = "train one: asr-doge pretrain ctc_head --speech_encoder ENCODER (docs/ctc_head.md)"
"""What to do about an encoder without CTC."""


@dataclass(frozen=True)
class Hypothesis:
    """A transcript that a decoder proposes for a clip.

    Attributes:
        text: without special tokens or space at the ends.
        score: None if it was not requested, else by decoder: `draft`, `beam`: natural logarithm of the text's
            probability by the language model, for `beam` with the bonus of hotwords. `ctc`: that of the head's best
            path. `fusion`: that of the text by the head, plus the weighted one by the language model, plus the word
            bonus. A text into which `ctc` or `fusion` inserted hotwords has the score of the head's best path, which
            lacks them.
        tokens: the language model's, with the end-of-sequence token if it was reached; empty for CTC.
        log_probs: of each token, if the decoder has them.
        passes: number of language-model passes.
        truncated: whether it was stopped at its length limit.
    """

    text: str
    score: float | None = None
    tokens: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    passes: int = 0
    truncated: bool = False


@dataclass(frozen=True)
class DecoderInputs:
    """The encoder's output for a batch of B clips.

    Attributes:
        speech: the encoder's output, with CTC logits if there is a head.
        drafts: the CTC head's text of each clip and its score; None without a head.
        biases: for each clip, the bias of the hotwords found in it; None if there are no hotwords.
        prompt_ids: of each clip's prompt, `[B, P]`, -100 at padding; None if the model has only one prompt.
        is_bounded: whether draft or duration may bound the length of the texts.
    """

    speech: SpeechEncoderOutput
    drafts: list[tuple[str, float]] | None = None
    biases: list[HotwordBias | None] | None = None
    prompt_ids: Tensor | None = None
    is_bounded: bool = True


class Decoder(ABC):
    """Decodes a batch."""

    @abstractmethod
    def decode(self, inputs: DecoderInputs) -> list[list[Hypothesis]]:
        """The hypotheses of each clip, best first."""


class CTCDecoder(Decoder):
    """Gives the CTC head's text."""

    def decode(self, inputs: DecoderInputs) -> list[list[Hypothesis]]:
        """See `Decoder.decode`."""
        assert inputs.drafts is not None
        return [[Hypothesis(text, score)] for text, score in inputs.drafts]


class LanguageModelDecoder(Decoder):
    """Base of the decoders that generate with the language model.

    Args:
        loaded: the model.
        bound_length: whether its draft, or its clip's duration, limits the length of a text.
    """

    def __init__(self, loaded: LoadedModel, bound_length: bool) -> None:
        self.model = loaded.model
        self.processor = loaded.processor
        self.bound_length = bound_length
        settings = loaded.model.generation_config
        eos = settings.eos_token_id
        self.eos_ids = frozenset([eos] if isinstance(eos, int) else eos or [])
        self.max_new_tokens: int = settings.max_new_tokens or MAX_NEW_TOKENS

    def draft_tokens(self, inputs: DecoderInputs) -> list[list[int]]:
        """Each draft as the language model's tokens."""
        if inputs.drafts is None:
            return [[] for _ in inputs.speech.speech_lengths]
        return [self.processor.text_ids(normalize_training_text(text))[:-1].tolist() for text, _ in inputs.drafts]

    def limits(self, drafts: Sequence[Sequence[int]], inputs: DecoderInputs) -> list[int]:
        """The most tokens of each text: by its draft, or without one by the clip's duration."""
        if not self.bound_length or not inputs.is_bounded:
            return [self.max_new_tokens] * len(drafts)
        if inputs.drafts is None:
            rate = TOKENS_PER_SECOND / self.model.encoder.frame_rate_hz
            bounds = [math.ceil(rate * length) for length in inputs.speech.speech_lengths.tolist()]
        else:
            bounds = [TOKENS_PER_DRAFT_TOKEN * len(draft) for draft in drafts]
        return [min(self.max_new_tokens, EXTRA_TOKENS + bound) for bound in bounds]

    def hypothesis(
        self, tokens: Sequence[int], limit: int, passes: int, score: float | None, log_probs: Sequence[float] = ()
    ) -> Hypothesis:
        """The hypothesis with these tokens."""
        text = self.processor.batch_decode([list(tokens)])[0]
        is_truncated = limit < self.max_new_tokens and len(tokens) >= limit and tokens[-1] not in self.eos_ids
        return Hypothesis(text, score, tuple(tokens), tuple(log_probs), passes, is_truncated)


class DraftDecoder(LanguageModelDecoder):
    """Greedy text by verifying the CTC draft; see `asr_doge.decoding.draft`."""

    def __init__(self, loaded: LoadedModel, bound_length: bool, accept_threshold: float | None) -> None:
        super().__init__(loaded, bound_length)
        piece = loaded.processor.tokenizer.convert_ids_to_tokens
        self.verifier = Verifier(self.model, self.eos_ids, piece, accept_threshold)

    def decode(self, inputs: DecoderInputs) -> list[list[Hypothesis]]:
        """See `Decoder.decode`."""
        drafts = self.draft_tokens(inputs)
        limits = self.limits(drafts, inputs)
        decoded = self.verifier.decode(inputs.speech, drafts, limits, inputs.biases, inputs.prompt_ids)
        return [
            [self.hypothesis(row.tokens, limit, row.passes, sum(row.log_probs), row.log_probs)]
            for row, limit in zip(decoded, limits, strict=True)
        ]


class LengthLimits(StoppingCriteria):
    """Ends each clip's search at its own limit, so that its text does not depend on longer clips in the batch.

    Args:
        limits: the most tokens of each clip.
    """

    def __init__(self, limits: Sequence[int]) -> None:
        self.limits = torch.tensor(limits)

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        """Whether each of the texts `[B, written so far]` must end; the beams of a clip follow each other."""
        texts_of_each = len(input_ids) // len(self.limits)
        return (self.limits.to(input_ids.device) <= input_ids.shape[1]).repeat_interleave(texts_of_each)


class SearchDecoder(LanguageModelDecoder):
    """Greedy or beam search token by token.

    Args:
        loaded, bound_length: as above.
        num_beams: 1 is greedy.
        n_best: number of hypotheses to give for each clip.
        score_tokens: whether to give the log-probabilities of the best text's tokens, which takes one more pass.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        bound_length: bool = False,
        num_beams: int = 1,
        n_best: int = 1,
        score_tokens: bool = False,
    ) -> None:
        super().__init__(loaded, bound_length)
        self.num_beams = num_beams
        self.n_best = n_best
        self.score_tokens = score_tokens

    def decode(self, inputs: DecoderInputs) -> list[list[Hypothesis]]:
        """See `Decoder.decode`."""
        speech = inputs.speech
        limits = self.limits(self.draft_tokens(inputs), inputs)
        biased = [HotwordLogitsProcessor(inputs.biases, self.num_beams)] if inputs.biases else []
        found = self.model.generate(
            speech_embeddings=speech.speech_embeddings,
            attention_mask=length_mask(speech.speech_lengths, speech.speech_embeddings.shape[1]),
            prompt_ids=inputs.prompt_ids,
            num_beams=self.num_beams,
            num_return_sequences=self.n_best,
            max_new_tokens=max(limits),
            logits_processor=LogitsProcessorList(biased),
            stopping_criteria=StoppingCriteriaList([LengthLimits(limits)]),
            return_dict_in_generate=True,
            output_scores=self.num_beams > 1,  # needed for the score of each sequence
        )
        texts = self._ended(found.sequences, limits)
        scores = found.sequences_scores.tolist() if self.num_beams > 1 else [None] * len(texts)
        log_probs: list[Sequence[float]] = [()] * len(texts)
        if self.score_tokens:
            log_probs[:: self.n_best] = score_tokens(self.model, inputs, texts[:: self.n_best])
        hypotheses = [
            self.hypothesis(tokens, limits[index // self.n_best], len(tokens), score, row)
            for index, (tokens, score, row) in enumerate(zip(texts, scores, log_probs, strict=True))
        ]
        return [hypotheses[start : start + self.n_best] for start in range(0, len(hypotheses), self.n_best)]

    def _ended(self, sequences: Tensor, limits: Sequence[int]) -> list[list[int]]:
        """Each sequence up to its end or its limit."""
        ended = []
        for index, tokens in enumerate(sequences.tolist()):
            limit = limits[index // self.n_best]
            end = next((place for place, token in enumerate(tokens) if token in self.eos_ids), len(tokens))
            ended.append(tokens[: min(end + 1, limit)])
        return ended


class FusionDecoder(LanguageModelDecoder):
    """Searches the CTC head's labels with the language model's word probabilities; see `asr_doge.decoding.fusion`.

    Args:
        loaded: the model.
        config: `beams`, the weights, `n_best`.
    """

    def __init__(self, loaded: LoadedModel, config: DecodingConfig) -> None:
        super().__init__(loaded, bound_length=False)
        self.config = config
        self.tokenizer = loaded.processor.tokenizer
        self.language_model = without_lora(self.model.language_model)  # LoRA was trained to read speech
        self.eos_id: int = self.tokenizer.eos_token_id
        self.bos_id: int = self.eos_id if self.tokenizer.bos_token_id is None else self.tokenizer.bos_token_id

    def decode(self, inputs: DecoderInputs) -> list[list[Hypothesis]]:
        """See `Decoder.decode`; a draft into which hotwords were inserted is kept as it is."""
        logits, lengths = inputs.speech.ctc_logits, inputs.speech.ctc_lengths
        assert logits is not None
        assert lengths is not None
        assert inputs.drafts is not None
        best_paths = ctc_greedy_texts(self.model.encoder, logits, lengths)
        wanted = [row for row, (draft, _) in enumerate(inputs.drafts) if draft == best_paths[row]]
        hypotheses = [[Hypothesis(draft, score)] for draft, score in inputs.drafts]
        if wanted:
            rows = ctc_log_posteriors(logits[wanted], lengths[wanted])
            weight, bonus = self.config.language_model_weight, self.config.word_bonus
            spell, model = self.model.encoder.ctc_text, self.language_model
            scorer = LanguageModelScorer(model, self.bos_id, spell, self._tokenize, weight, bonus, len(rows))
            searches = [prefix_beam_search(row, self.config.beams, MARGIN) for row in rows]
            for row, result in zip(wanted, search_together(searches, scorer), strict=True):
                hypotheses[row] = self._scored(result, scorer)
        return hypotheses

    def _scored(self, result: SearchResult, scorer: LanguageModelScorer) -> list[Hypothesis]:
        """The distinct texts of a clip, best first."""
        texts: dict[str, float] = {}
        for labels in result.sequences:
            text = " ".join(self.model.encoder.ctc_text(labels.ids).split())
            texts[text] = max(labels.log_prob, texts.get(text, -math.inf))
        scored = []
        for text, (ids, log_probs) in zip(texts, scorer.log_probs(list(texts), self.eos_id), strict=True):
            score = texts[text] + scorer.weight * sum(log_probs) + scorer.bonus * len(text.split())
            scored.append(Hypothesis(text, score, tuple(ids), tuple(log_probs), result.passes + 1))
        return sorted(scored, key=lambda hypothesis: -(hypothesis.score or 0.0))[: self.config.n_best]

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        """The language model's tokens of texts, without special ones."""
        normalized = [normalize_training_text(text) for text in texts]
        ids: list[list[int]] = self.tokenizer(normalized, add_special_tokens=False).input_ids
        return ids


@torch.inference_mode()
def score_tokens(model: torch.nn.Module, inputs: DecoderInputs, rows: Sequence[Sequence[int]]) -> list[list[float]]:
    """Natural logarithms of the probability of each token of each row's text, in one pass."""
    speech = inputs.speech
    width = max(map(len, rows))
    labels = torch.full((len(rows), width), IGNORED_LABEL)
    for place, row in zip(labels, rows, strict=True):
        place[: len(row)] = torch.tensor(row, dtype=torch.long)
    mask = length_mask(speech.speech_lengths, speech.speech_embeddings.shape[1])
    labels = labels.to(mask.device)
    logits = model(
        speech_embeddings=speech.speech_embeddings, attention_mask=mask, labels=labels, prompt_ids=inputs.prompt_ids
    ).logits
    scores = []
    for row_logits, row in zip(logits, rows, strict=True):
        log_probs = row_logits[len(row_logits) - len(row) - 1 : -1].float().log_softmax(dim=-1)
        scores.append(log_probs.gather(1, torch.tensor(row, device=mask.device)[:, None])[:, 0].tolist())
    return scores


def choose_decoder(config: DecodingConfig, loaded: LoadedModel | LoadedEncoder) -> DecoderName:
    """The decoder that the configuration names, or the default of this model."""
    if config.decoder is not None:
        return config.decoder
    if isinstance(loaded, LoadedEncoder):
        return "ctc"
    named = loaded.model.config.default_decoder
    if config.num_beams > 1:
        return "fusion" if named == "fusion" else "beam"
    if named is not None:
        return _checked_name(named)
    return "draft" if loaded.model.encoder.has_ctc and not _obstacle(loaded) else "greedy"


def _checked_name(name: str) -> DecoderName:
    """The decoder that a checkpoint's configuration names."""
    if name not in get_args(DecoderName):
        choices = ", ".join(get_args(DecoderName))
        raise ConfigError(f"the checkpoint's config.json names default_decoder '{name}': choose from {choices}")
    return cast(DecoderName, name)


def build_decoder(config: DecodingConfig, loaded: LoadedModel | LoadedEncoder) -> Decoder:
    """The decoder that `choose_decoder` chooses.

    Raises:
        ConfigError: this model does not support the decoder.
    """
    name = choose_decoder(config, loaded)
    _check_n_best(config, name, loaded)
    config = replace(config, decoder=name)  # which sets the number of beams
    encoder = loaded.speech_encoder.encoder
    if name in ("ctc", "draft", "fusion") and not encoder.has_ctc:
        instead = "" if isinstance(loaded, LoadedEncoder) else "use --decoder greedy, or "
        raise ConfigError(f"--decoder {name} needs a CTC head, which this encoder lacks: {instead}{TRAIN_A_HEAD}")
    if name == "fusion" and isinstance(loaded, LoadedModel) and loaded.model.config.vocabulary_ids is not None:
        raise ConfigError(
            "--decoder fusion needs a probability of every word, and this checkpoint writes some tokens only (it was"
            " trained by --vocabulary texts): use draft, beam or greedy"
        )
    if config.accept_threshold is not None and name != "draft":
        raise ConfigError(f"--accept_threshold is for --decoder draft, and this is {name}; leave it out")
    if name == "ctc":
        return CTCDecoder()
    if isinstance(loaded, LoadedEncoder):
        raise ConfigError(f"--decoder {name} needs a language model; with the encoder alone, use ctc")
    if name == "draft":
        if obstacle := _obstacle(loaded):
            raise ConfigError(f"--decoder draft would not give the text of greedy: {obstacle}; use greedy")
        return DraftDecoder(loaded, config.guard_length, config.accept_threshold)
    if name == "fusion":
        if getattr(loaded.model.config.text_config, "is_moe", False):
            raise ConfigError(f"--decoder fusion needs a language model of text alone, and {_MOE}; use ctc or greedy")
        return FusionDecoder(loaded, config)
    with_scores = config.timestamps == "word"
    return SearchDecoder(loaded, config.guard_length, config.beams, config.n_best, with_scores)


def _check_n_best(config: DecodingConfig, name: DecoderName, loaded: LoadedModel | LoadedEncoder) -> None:
    """Refuse more hypotheses than the decoder keeps."""
    beams = replace(config, decoder=name).beams
    if config.n_best <= beams:
        return
    kept = f"{name} keeps {beams}" if beams > 1 else f"{name} gives one"
    way_out = f"give --num_beams {config.n_best}"
    if isinstance(loaded, LoadedEncoder):
        way_out = "leave it out, as the encoder alone has no search"
    elif config.decoder == name and beams == 1:
        way_out = "use --decoder beam or fusion"
    raise ConfigError(f"--n_best {config.n_best} needs at least as many hypotheses, and {kept}: {way_out}")


_MOE = "its mixture of experts reads ahead"


def _obstacle(loaded: LoadedModel) -> str | None:
    """Why this language model gives another result for several tokens at once than one by one; None if it does not."""
    config = loaded.model.config.text_config
    if getattr(config, "is_moe", False):  # Doge's router mixes neighbouring positions
        return _MOE
    if getattr(config, "sliding_window", None) is not None:
        return "its cache forgets what lies behind a sliding window"
    return None
