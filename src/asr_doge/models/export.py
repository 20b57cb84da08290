"""Export a model as two ONNX graphs, with the settings needed to use them without PyTorch.

Promises: `docs/export.md` describes each file; onnxruntime has run both graphs on batches of unequal lengths, and the
results agree with the model's; the folder is written completely or not at all.
It does not know how to decode with the graphs (see examples/onnx_inference.py).
"""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from asr_doge.audio.log_mel import mel_filters
from asr_doge.errors import ConfigError
from asr_doge.models.atomic_folder import atomic_folder
from asr_doge.models.ctc_head import HeadedEncoder
from asr_doge.models.encoders import EncoderFamily, length_mask
from asr_doge.models.encoders.dense import DENSE, DenseCTCHead
from asr_doge.models.feature_extraction_asr_doge import LogMelFeatureExtractor, WaveformFeatureExtractor
from asr_doge.models.loading import MAX_NEW_TOKENS, LoadedModel
from asr_doge.models.modeling_asr_doge import ASRDogeForConditionalGeneration

ENCODER_GRAPH, LANGUAGE_MODEL_GRAPH = "encoder.onnx", "language_model.onnx"
SPEECH_TOKEN = -1
"""Token id that is replaced by the next speech embedding."""
TOLERANCE = 1e-3
"""Largest difference of a graph's outputs from the model's, relative to their spread."""
Axes = Mapping[str, Sequence[int]]
"""Axes of each input that may have any size."""


class EncoderGraph(nn.Module):
    """Encoder and adapter: input features to speech embeddings for the language model."""

    def __init__(self, model: ASRDogeForConditionalGeneration) -> None:
        super().__init__()
        headed = isinstance(model.encoder, HeadedEncoder)
        encoder = cast(EncoderFamily, model.encoder.family if headed else model.encoder)
        if encoder.model_type not in DENSE:
            raise ConfigError(f"encoders of type '{encoder.model_type}' cannot be exported; {', '.join(DENSE)} can")
        self.encoder = DENSE[encoder.model_type](encoder)
        self.adapter = model.adapter
        self.axes: Axes = {"input_features": self.encoder.dynamic_axes, "input_lengths": (0,)}
        self.ctc_head = DenseCTCHead.of(model.encoder.ctc_head) if headed else None  # others are left out
        self.has_ctc = self.ctc_head is not None if headed else encoder.has_ctc
        self.outputs = ("speech", "speech_lengths", *(("ctc_log_probs",) if self.has_ctc else ()))

    def forward(self, input_features: Tensor, input_lengths: Tensor) -> tuple[Tensor, ...]:
        """`speech` `[B, S, H]`, `speech_lengths` `[B]` and, with a CTC head, `ctc_log_probs` `[B, T, V]`."""
        encoded = self.encoder(input_features, input_lengths)
        speech, lengths = self.adapter(encoded.speech_embeddings, encoded.speech_lengths)
        logits = encoded.ctc_logits
        if self.ctc_head is not None:
            logits = self.ctc_head(encoded.speech_embeddings, encoded.speech_lengths)
        return speech, lengths, *((logits.log_softmax(dim=-1),) if self.has_ctc else ())


class LanguageModelGraph(nn.Module):
    """The language model, which reads token ids and speech embeddings after those in its cache."""

    axes: Axes = {"token_ids": (0, 1), "speech": (0, 1), "attention_mask": (0, 1), "cache": (2, 4)}
    outputs = ("logits", "new_cache")

    def __init__(self, model: ASRDogeForConditionalGeneration) -> None:
        super().__init__()
        self.language_model = model.language_model
        self.embed = model.get_input_embeddings()

    def forward(self, token_ids: Tensor, speech: Tensor, attention_mask: Tensor, cache: Tensor) -> tuple[Tensor, ...]:
        """Extend the cache by new positions.

        Args:
            token_ids: `[B, N]`, `SPEECH_TOKEN` at the positions of a row's speech embeddings.
            speech: `[B, S, H]`, at least one per row; ignored if there is no `SPEECH_TOKEN`.
            attention_mask: `[B, P + N]`, 0 at padding, including that of the cache.
            cache: `[layers, 2, B, heads, P, d]`, keys and values of earlier positions.

        Returns:
            `logits` `[B, N, V]` and `new_cache` `[layers, 2, B, heads, P + N, d]`.
        """
        is_speech = token_ids == SPEECH_TOKEN
        place = (is_speech.long().cumsum(dim=1) - 1).clamp(min=0)
        speech_rows = speech.gather(1, place[..., None].expand(-1, -1, speech.shape[2]))
        embeddings = torch.where(is_speech[..., None], speech_rows, self.embed(token_ids.clamp(min=0)))
        past = DynamicCache()
        for layer, (keys, values) in enumerate(cache):
            past.update(keys, values, layer)
        positions = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)[:, -token_ids.shape[1] :]
        output = self.language_model(
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            position_ids=positions,
            past_key_values=past,
            use_cache=True,
        )
        new_cache = torch.stack([torch.stack((layer.keys, layer.values)) for layer in output.past_key_values.layers])
        return output.logits, new_cache


def export_onnx(loaded: LoadedModel, folder: Path) -> None:
    """Write a model on the CPU, in float32, to a new folder: graphs, tokenizer, settings and, for Granite, mel filters.

    Raises:
        ConfigError: the folder exists, the `export` extra is not installed, or a graph does not agree with the model.
    """
    if folder.exists():
        raise ConfigError(f"--output_dir {folder} exists: choose a new folder")
    if not all(find_spec(package) for package in ("onnxscript", "onnxruntime")):
        raise ConfigError("export needs the packages of its extra: pip install 'asr-doge[export]'")
    with atomic_folder(folder) as partial:
        _write_all(loaded, partial)


def _write_all(loaded: LoadedModel, folder: Path) -> None:
    """Write all files of an export, and compare the graphs with the model."""
    cache = _some_cache(loaded.model)
    batch = _noise(loaded)
    graph = EncoderGraph(loaded.model)
    write_graph(graph, batch, folder / ENCODER_GRAPH)
    write_graph(
        LanguageModelGraph(loaded.model), _some_decoding_state(loaded.model, cache), folder / LANGUAGE_MODEL_GRAPH
    )
    _check(loaded, batch, cache, folder, graph.has_ctc)
    if isinstance(loaded.processor.feature_extractor, LogMelFeatureExtractor):
        np.save(folder / "mel_filters.npy", mel_filters().numpy().astype(np.float32))
    loaded.processor.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "settings.json").write_text(
        json.dumps(_settings(loaded, cache, graph), indent=2) + "\n", encoding="utf-8"
    )


def _settings(loaded: LoadedModel, cache: Tensor, graph: EncoderGraph) -> dict[str, Any]:
    """Metadata that a program needs to decode with the graphs."""
    ctc_head = graph.ctc_head
    vocabulary = ctc_head.head.vocabulary if ctc_head is not None else loaded.model.encoder.vocabulary
    labels = {"ctc_labels": ["", *vocabulary.tokens]} if vocabulary is not None and graph.has_ctc else {}
    extractor = loaded.processor.feature_extractor
    samples = {"do_normalize": extractor.do_normalize} if isinstance(extractor, WaveformFeatureExtractor) else {}
    generation = loaded.model.generation_config
    eos = generation.eos_token_id
    return {
        "sampling_rate": loaded.speech_encoder.sampling_rate,
        "prompt_ids": loaded.model.config.prompt_ids or [],
        "speech_token_id": SPEECH_TOKEN,
        "eos_token_ids": eos if isinstance(eos, list) else [eos],
        "max_new_tokens": generation.max_new_tokens or MAX_NEW_TOKENS,
        "empty_cache_shape": list(cache[:, :, :1, :, :0].shape),
        **labels,
        **samples,
    }


def _noise(loaded: LoadedModel) -> tuple[Tensor, Tensor]:
    """Input features of two clips of noise, and their lengths."""
    rng = np.random.default_rng(0)
    rate = loaded.speech_encoder.sampling_rate
    clips = [0.1 * rng.standard_normal(length, dtype=np.float32) for length in (5 * rate, 2 * rate + rate // 3)]
    inputs = loaded.processor(audio=clips, sampling_rate=rate)
    return inputs["input_features"], inputs["attention_mask"].sum(dim=1)


def _some_cache(model: ASRDogeForConditionalGeneration) -> Tensor:
    """A cache of noise, `[layers, 2, 2, heads, 5, d]`."""
    with torch.inference_mode():
        one = model.get_input_embeddings().weight[None, :1]
        layers = model.language_model(inputs_embeds=one, use_cache=True).past_key_values.layers
    _, heads, _, size = layers[0].keys.shape
    return torch.randn(len(layers), 2, 2, heads, 5, size)


def _some_decoding_state(model: ASRDogeForConditionalGeneration, cache: Tensor) -> tuple[Tensor, ...]:
    """Inputs of the language-model graph in which axes have equal sizes only where they must."""
    _, _, batch, _, past, _ = cache.shape
    speech = torch.randn(batch, 4, model.get_input_embeddings().embedding_dim)
    return torch.tensor([[3, SPEECH_TOKEN, 4]] * batch), speech, torch.ones(batch, past + 3, dtype=torch.long), cache


def write_graph(graph: EncoderGraph | LanguageModelGraph, inputs: tuple[Tensor, ...], path: Path) -> None:
    """Trace a graph over example inputs and save it."""
    shapes = {name: dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for name, axes in graph.axes.items()}
    with torch.inference_mode(), _quiet(), _unscaled_positions(graph):
        program = torch.onnx.export(
            graph.eval(),
            inputs,
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=list(graph.axes),
            output_names=list(graph.outputs),
            verbose=False,
        )
    assert program is not None
    program.save(path)


@contextmanager
def _unscaled_positions(module: nn.Module) -> Iterator[None]:
    """Disable dynamic scaling of positions, which depends on the data and cannot be in a graph.

    It has an effect only on texts longer than the model was made for.
    """
    scaled: list[Any] = [part for part in module.modules() if getattr(part, "rope_type", None) == "dynamic"]
    for part in scaled:
        part.rope_type = "default"
    try:
        yield
    finally:
        for part in scaled:
            part.rope_type = "dynamic"


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's messages about packages that are not needed."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.disable(previous)


@torch.inference_mode()
def _check(loaded: LoadedModel, batch: tuple[Tensor, Tensor], cache: Tensor, folder: Path, has_ctc: bool) -> None:
    """Compare both graphs with the model: on a batch of unequal lengths, and on text after it."""
    from onnxruntime import InferenceSession  # of an extra

    def run(name: str, *inputs: Tensor) -> list[Tensor]:
        session = InferenceSession(folder / name, providers=["CPUExecutionProvider"])
        names = [each.name for each in session.get_inputs()]
        feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return [torch.from_numpy(output) for output in session.run(None, feed)]

    model, (features, lengths) = loaded.model, batch
    encoded = model.encode(features, length_mask(lengths, model.encoder.num_frames(features)), has_ctc)
    expected, expected_lengths = model.adapter(encoded.speech_embeddings, encoded.speech_lengths)
    speech, speech_lengths, *posteriors = run(ENCODER_GRAPH, *batch)
    for row, other, length in zip(speech, expected, expected_lengths.tolist(), strict=True):
        _same(ENCODER_GRAPH, row[:length], other[:length])
    if encoded.ctc_logits is not None and encoded.ctc_lengths is not None:
        logs = encoded.ctc_logits.log_softmax(dim=-1)
        for row, other, length in zip(posteriors[0], logs, encoded.ctc_lengths.tolist(), strict=True):
            _same(ENCODER_GRAPH, row[:length], other[:length])
    prompt = model.config.prompt_ids or []
    rows = [[*prompt, *[SPEECH_TOKEN] * length, 3, 4] for length in speech_lengths.tolist()]
    longest = max(map(len, rows))
    token_ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    speech_mask = length_mask(encoded.speech_lengths, encoded.speech_embeddings.shape[1])
    logits, state = model.prefill(encoded.speech_embeddings, speech_mask, token_ids[:, -2:])
    found, read = run(LANGUAGE_MODEL_GRAPH, token_ids, speech, mask, cache[..., :0, :])
    _same(LANGUAGE_MODEL_GRAPH, found[:, -3:], logits)
    more = torch.tensor([[5, 6]] * len(rows))
    found, _ = run(LANGUAGE_MODEL_GRAPH, more, speech, torch.cat([mask, torch.ones_like(more)], dim=1), read)
    _same(LANGUAGE_MODEL_GRAPH, found, model.extend(state, more))


def _same(name: str, found: Tensor, expected: Tensor) -> None:
    difference = float((found - expected).abs().max() / expected.std())
    if not difference <= TOLERANCE:  # also refuses NaN
        raise ConfigError(
            f"{name} would differ from the model by {difference:.2g} of its outputs' spread, more than {TOLERANCE}:"
            " this kind of model cannot be exported"
        )
