"""Recognize waveforms: the encoder, the guards, a decoder, and the times and confidences of the words.

Promises: one path for every decoder, for a whole model and for an encoder alone; a clip's recognition does not depend
on its batch; a recognition names the guards that acted.
It does not read files, cut recordings or know formats.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asr_doge.decoding.alignment import align_words
from asr_doge.decoding.confidence import CALIBRATION, Calibration
from asr_doge.decoding.configuration import DecodingConfig
from asr_doge.decoding.ctc import best_path_probabilities, cannot_spell, ctc_greedy_texts, ctc_log_posteriors
from asr_doge.decoding.decoders import TRAIN_A_HEAD, CTCDecoder, DecoderInputs, Hypothesis, build_decoder
from asr_doge.decoding.guards import (
    GuardName,
    has_unlikely_labels,
    is_blank,
    is_nonspeech,
    is_quiet_or_steady,
    silenced,
    steady_stretches,
    without_loops,
)
from asr_doge.decoding.hotwords import HotwordBias, insert_hotwords, read_hotwords, spot_hotwords
from asr_doge.errors import CheckpointError, ConfigError
from asr_doge.models import LoadedEncoder, LoadedModel
from asr_doge.models.encoders import SpeechEncoderOutput

Waveform = NDArray[np.float32]
LogPosteriors = NDArray[np.float32]


@dataclass(frozen=True)
class RecognizedWord:
    """A word of a clip.

    Attributes:
        text: the word.
        start, end: in seconds from the start of the clip.
        confidence: in [0, 1]; None without a language model.
        log_posterior: mean over its characters, from the CTC head; None for a word that the head cannot spell.
        log_prob: sum over its tokens, from the language model; None if the decoder has none.
    """

    text: str
    start: float
    end: float
    confidence: float | None
    log_posterior: float | None
    log_prob: float | None


@dataclass(frozen=True)
class Recognition:
    """The recognition of one clip.

    Attributes:
        text: the best hypothesis after the guards.
        words: of the text, with times; empty unless they were requested.
        word_bounds: start of the first word and end of the last, in seconds, if times were requested.
        times: start and end of each word of the text, if they were requested for this clip and there is a CTC head.
        alternatives: hypotheses, best first, each with its score; empty unless several were requested.
        guards: those that acted.
        passes: number of language-model passes.
        label_probabilities: of the CTC head's best path, at each frame that is no blank; empty without a head.
        silenced: start and end of each stretch that the guard `silence` kept from the model, in seconds of the clip.
    """

    text: str = ""
    words: tuple[RecognizedWord, ...] = ()
    word_bounds: tuple[float, float] | None = None
    times: tuple[tuple[float, float], ...] = ()
    alternatives: tuple[tuple[str, float], ...] = ()
    guards: tuple[GuardName, ...] = ()
    passes: int = 0
    label_probabilities: tuple[float, ...] = ()
    silenced: tuple[tuple[float, float], ...] = ()


class Recognizer:
    """Recognizes clips with a loaded model, or an encoder alone, and a decoder.

    Args:
        loaded: from `load_model` or `load_encoder_alone`.
        config: how to decode.

    Raises:
        ConfigError: the settings contradict each other or the model.
    """

    def __init__(self, loaded: LoadedModel | LoadedEncoder, config: DecodingConfig) -> None:
        config.check()
        self.loaded = loaded
        self.speech_encoder = loaded.speech_encoder
        self.encoder = self.speech_encoder.encoder
        if config.timestamps == "auto":
            config = replace(config, timestamps="word" if self.encoder.has_ctc else "none")
        self.config = config
        self.decoder = build_decoder(config, loaded)
        calibration = None if isinstance(loaded, LoadedEncoder) else loaded.model.config.calibration
        self.calibration = CALIBRATION if calibration is None else Calibration(**calibration)
        self.hotwords = read_hotwords(config.hotwords) if config.hotwords else []
        if not self.encoder.has_ctc:
            for flag, wanted in (("timestamps word", config.timestamps == "word"), ("hotwords", self.hotwords)):
                if wanted:
                    raise ConfigError(f"--{flag} needs a CTC head, which this encoder lacks: {TRAIN_A_HEAD}")

    @torch.inference_mode()
    def recognize(
        self,
        waveforms: Sequence[Waveform],
        has_voice: Callable[[Waveform], bool] | None = None,
        languages: Sequence[str | None] | None = None,
        timed: Sequence[bool] | None = None,
        hotwords: Sequence[Sequence[str]] | None = None,
    ) -> list[Recognition]:
        """Recognize each clip of a batch.

        Args:
            waveforms: `[samples]` each, at the encoder's sampling rate.
            has_voice: runs a voice activity detector on a clip, for the guard `silence`; default, every clip has
                speech.
            languages: spoken in each; None if it is not known.
            timed: the clips for which to give word times, whatever `DecodingConfig.timestamps` says.
            hotwords: searched for in each clip, if there is a CTC head; default, the configuration's in all.

        Raises:
            CheckpointError: the CTC head gives NaN.
        """
        silent = Recognition(guards=("silence",))
        results = [silent] * len(waveforms)
        rate = self.speech_encoder.sampling_rate
        guarded = self.config.guard_silence
        stretches = [steady_stretches(clip, rate) if guarded else [] for clip in waveforms]
        waveforms = [silenced(clip, parts) for clip, parts in zip(waveforms, stretches, strict=True)]
        audible = [i for i, clip in enumerate(waveforms) if not (guarded and is_quiet_or_steady(clip, rate))]
        if not audible:
            return results
        speech = self.speech_encoder.encode([waveforms[i] for i in audible], self.encoder.has_ctc)
        log_posteriors = self._log_posteriors(speech)
        row_posteriors = log_posteriors if log_posteriors is not None else [None] * len(audible)
        probabilities = [_label_probabilities(row) for row in row_posteriors]
        rows = list(range(len(audible)))  # of the encoder's batch
        row_hotwords = [hotwords[place] if hotwords is not None else self.hotwords for place in audible]
        if guarded:
            clips = [waveforms[place] for place in audible]
            for row in rows:  # a discarded clip counts in `unsure_below` too
                results[audible[row]] = replace(silent, label_probabilities=probabilities[row])
            rows = [
                row
                for row in rows
                if (row_hotwords[row] or not self._has_unlikely_labels(clips[row], probabilities[row]))
                and self._may_be_speech(clips[row], row_posteriors[row], has_voice)
            ]
        if not rows:
            return results
        speech = _rows(speech, rows)
        log_posteriors = [log_posteriors[row] for row in rows] if log_posteriors is not None else None
        places = [audible[row] for row in rows]
        prompt_ids = self._prompt_ids([languages[place] for place in places]) if languages is not None else None
        want_times = [timed is not None and timed[place] for place in places]
        clips = [waveforms[place] for place in places]
        found = self._decode(speech, log_posteriors, clips, prompt_ids, want_times, [row_hotwords[row] for row in rows])
        for row, place, recognition in zip(rows, places, found, strict=True):
            parts = tuple((start / rate, end / rate) for start, end in stretches[place])
            results[place] = replace(recognition, label_probabilities=probabilities[row], silenced=parts)
        return results

    def _has_unlikely_labels(self, waveform: Waveform, label_probabilities: Sequence[float]) -> bool:
        """Whether the CTC head's labels are so unlikely that the guard `silence` discards a clip.

        Clips with hotwords are not checked, since a head is least sure of those.
        """
        least = self.speech_encoder.silent_below
        seconds = len(waveform) / self.speech_encoder.sampling_rate
        return least is not None and has_unlikely_labels(label_probabilities, seconds, least)

    def _may_be_speech(
        self, waveform: Waveform, log_posteriors: LogPosteriors | None, has_voice: Callable[[Waveform], bool] | None
    ) -> bool:
        """Whether a clip is worth decoding: not if the guard `silence` finds no speech.

        Speech for which the head gives only blanks may be in another script; this is decided when the text is known.
        """
        if log_posteriors is not None and is_blank(log_posteriors):
            has_language_model = not isinstance(self.decoder, CTCDecoder)
            return has_language_model and has_voice is not None and has_voice(waveform)
        return not is_nonspeech(log_posteriors, partial(has_voice or (lambda clip: True), waveform))

    @property
    def reads_language(self) -> bool:
        """Whether its texts depend on the language that it is given."""
        return isinstance(self.loaded, LoadedModel) and self.loaded.processor.names_language

    def _prompt_ids(self, languages: Sequence[str | None]) -> Tensor | None:
        if not self.reads_language or isinstance(self.loaded, LoadedEncoder):
            return None
        prompt_ids: Tensor = self.loaded.processor(language=languages)["prompt_ids"]
        return prompt_ids.to(self.loaded.model.device)

    def _log_posteriors(self, speech: SpeechEncoderOutput) -> list[LogPosteriors] | None:
        """Log-posteriors of each clip; NaN, which would look like silence, is a CheckpointError."""
        if speech.ctc_logits is None or speech.ctc_lengths is None:
            return None
        log_posteriors = ctc_log_posteriors(speech.ctc_logits, speech.ctc_lengths)
        if any(np.isnan(row).any() for row in log_posteriors):
            raise CheckpointError("the encoder gives NaN on these recordings: its weights are damaged or too large")
        return log_posteriors

    def _decode(
        self,
        speech: SpeechEncoderOutput,
        log_posteriors: list[LogPosteriors] | None,
        waveforms: Sequence[Waveform],
        prompt_ids: Tensor | None,
        timed: Sequence[bool],
        hotwords: Sequence[Sequence[str]],
    ) -> list[Recognition]:
        """Recognitions of clips that may have speech."""
        inputs = replace(self._decoder_inputs(speech, log_posteriors, hotwords), prompt_ids=prompt_ids)
        rows = self.decoder.decode(inputs)
        if inputs.drafts is not None:
            # Texts that were truncated at the length of a draft in another script are decoded again without a limit.
            unbounded = [
                row
                for row, texts in enumerate(rows)
                if texts[0].truncated and cannot_spell(self.encoder, texts[0].text)
            ]
            if unbounded:
                again = self.decoder.decode(_without_drafts(inputs, unbounded))
                for row, (best, *others) in zip(unbounded, again, strict=True):
                    rows[row] = [replace(best, passes=rows[row][0].passes + best.passes), *others]
        return [
            self._finish(
                hypotheses,
                waveforms[index],
                inputs.drafts[index][0] if inputs.drafts is not None else None,
                log_posteriors[index] if log_posteriors is not None else None,
                timed[index],
            )
            for index, hypotheses in enumerate(rows)
        ]

    def _decoder_inputs(
        self, speech: SpeechEncoderOutput, log_posteriors: list[LogPosteriors] | None, hotwords: Sequence[Sequence[str]]
    ) -> DecoderInputs:
        """The encoder's output with the CTC head's drafts, in which hotwords that were found are inserted."""
        if log_posteriors is None or speech.ctc_logits is None or speech.ctc_lengths is None:
            return DecoderInputs(speech)
        scores = [float(row.max(axis=1).sum()) for row in log_posteriors]
        texts = ctc_greedy_texts(self.encoder, speech.ctc_logits, speech.ctc_lengths)
        if not any(hotwords):
            return DecoderInputs(speech, list(zip(texts, scores, strict=True)))
        biases: list[HotwordBias | None] = [None] * len(log_posteriors)
        tokenizer = self.loaded.processor.tokenizer if isinstance(self.loaded, LoadedModel) else None
        for index, (row, words) in enumerate(zip(log_posteriors, hotwords, strict=True)):
            spotted = spot_hotwords(self.encoder, row, words, self.config.hotword_weight)
            if spotted:
                draft = insert_hotwords(self.encoder, row, spotted)
                texts[index] = draft[0]
                biases[index] = HotwordBias(tokenizer, spotted, draft) if tokenizer is not None else None
        return DecoderInputs(speech, list(zip(texts, scores, strict=True)), biases)

    def _finish(
        self,
        hypotheses: Sequence[Hypothesis],
        waveform: Waveform,
        draft: str | None,
        log_posteriors: LogPosteriors | None,
        want_times: bool,
    ) -> Recognition:
        """The best hypothesis after the guards, with word times if they are requested."""
        best = hypotheses[0]
        if log_posteriors is not None:
            if cannot_spell(self.encoder, best.text):
                draft = None
            elif self.config.guard_silence and is_blank(log_posteriors):
                return Recognition(guards=("silence",), passes=best.passes)
        guards: list[GuardName] = ["length"] if best.truncated else []
        words = best.text.split()
        kept = list(range(len(words)))
        if self.config.guard_loops:
            kept = without_loops(words, draft.split() if draft is not None else None)
            guards += ["loop"] if len(kept) < len(words) else []
        text = best.text if len(kept) == len(words) else " ".join(words[number] for number in kept)
        timed: tuple[RecognizedWord, ...] = ()
        asked = self.config.timestamps in ("segment", "word")
        if (asked or want_times) and log_posteriors is not None and kept:
            wants_confidence = self.config.timestamps == "word"  # which takes longer than the times
            certainty = self._word_log_probs(best, len(words)) if wants_confidence else [None] * len(words)
            certainty = [certainty[number] for number in kept]
            timed = self._time([words[number] for number in kept], certainty, log_posteriors, waveform)
        return Recognition(
            text,
            words=timed if self.config.timestamps == "word" else (),
            word_bounds=(timed[0].start, timed[-1].end) if timed and asked else None,
            times=tuple((word.start, word.end) for word in timed) if want_times else (),
            alternatives=tuple((one.text, one.score or 0.0) for one in hypotheses) if self.config.n_best > 1 else (),
            guards=tuple(guards),
            passes=best.passes,
        )

    def _time(
        self, words: Sequence[str], log_probs: Sequence[float | None], log_posteriors: LogPosteriors, waveform: Waveform
    ) -> tuple[RecognizedWord, ...]:
        places = align_words(self.encoder, log_posteriors, words, waveform, self.speech_encoder.sampling_rate)
        timed = []
        for word, place, log_prob in zip(words, places, log_probs, strict=True):
            # The calibration is for both scores together: from the head's alone it would be far too confident.
            confidence = self.calibration(place.log_posterior, log_prob) if log_prob is not None else None
            timed.append(RecognizedWord(word, place.start, place.end, confidence, place.log_posterior, log_prob))
        return tuple(timed)

    def _word_log_probs(self, hypothesis: Hypothesis, count: int) -> list[float | None]:
        """Log-probability of the tokens of each of `count` words; None if the decoder gives none."""
        if not hypothesis.log_probs or isinstance(self.loaded, LoadedEncoder):
            return [None] * count
        tokenizer = self.loaded.processor.tokenizer
        sums = [0.0] * count
        for end, log_prob in enumerate(hypothesis.log_probs, start=1):
            so_far = str(tokenizer.decode(list(hypothesis.tokens[:end]), skip_special_tokens=True)).split()
            sums[min(max(len(so_far), 1), count) - 1] += log_prob if len(so_far) else 0.0
        return list(sums)


def _label_probabilities(log_posteriors: LogPosteriors | None) -> tuple[float, ...]:
    return tuple(best_path_probabilities(log_posteriors).tolist()) if log_posteriors is not None else ()


def _without_drafts(inputs: DecoderInputs, rows: Sequence[int]) -> DecoderInputs:
    """Some clips of a batch, without what the CTC head gave, for texts of any length."""
    biases = [inputs.biases[row] for row in rows] if inputs.biases is not None else None
    prompt_ids = inputs.prompt_ids[list(rows)] if inputs.prompt_ids is not None else None
    return DecoderInputs(_rows(inputs.speech, rows), None, biases, prompt_ids, is_bounded=False)


def _rows(speech: SpeechEncoderOutput, rows: Sequence[int]) -> SpeechEncoderOutput:
    """Some clips of a batch."""

    def chosen(tensor: Tensor | None) -> Tensor | None:
        return tensor[list(rows)] if tensor is not None else None

    return SpeechEncoderOutput(
        speech.speech_embeddings[list(rows)],
        speech.speech_lengths[list(rows)],
        chosen(speech.ctc_logits),
        chosen(speech.ctc_lengths),
    )
