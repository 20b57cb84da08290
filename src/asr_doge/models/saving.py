"""Save and load a model: a checkpoint holds what was trained, and points to the frozen parts.

Promises: `save_pretrained` writes what training updates and whatever has no pointer to weights elsewhere;
`from_pretrained` finds the rest by the pointers in the configuration. A weight that is missing or unexpected is an
error that names it.
It does not know what the model computes.
"""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from asr_doge.choices import Quantization
from asr_doge.errors import ConfigError
from asr_doge.models.adapters import Adapter
from asr_doge.models.checkpoints import find_model, load_generation_config
from asr_doge.models.configuration_asr_doge import ASRDogeConfig
from asr_doge.models.encoders import SpeechEncoder
from asr_doge.models.frozen_parts import load_asr_doge_config, load_frozen_encoder, load_frozen_language_model
from asr_doge.models.lora import merge_updates
from asr_doge.models.one_at_a_time import one_at_a_time
from asr_doge.models.quantization import is_quantized, quantize_linear_layers
from asr_doge.models.weights import check_keys, check_shapes, read_weights

Model = TypeVar("Model", bound="SavedInParts")


class SavedInParts(PreTrainedModel):
    """A model whose frozen parts are saved elsewhere.

    Attributes:
        config: the configuration, with pointers to the frozen parts.
        encoder, adapter, language_model: the parts.
        merged_updates: LoRA's updates that are merged into the encoder's weights; a checkpoint stores them separately.
    """

    config: ASRDogeConfig
    encoder: SpeechEncoder
    adapter: Adapter
    language_model: PreTrainedModel
    merged_updates: dict[str, Tensor]

    @abstractmethod
    def is_trained(self, name: str) -> bool:
        """Whether training updates the parameter `name`."""

    @abstractmethod
    def sample_token_embeddings(self) -> Tensor:
        """Output of the embedding module for some tokens, `[V, H]`."""

    def trained_keys(self) -> set[str]:
        """Names of the weights that a checkpoint holds.

        These are what training updates, and any part that has no pointer to weights elsewhere.
        """
        without_pointer = [
            prefix
            for prefix, pointer in (
                ("encoder.", self.config.speech_encoder),
                ("language_model.", self.config.language_model),
            )
            if pointer is None
        ]
        tied = set(self.language_model.all_tied_weights_keys)
        return self.merged_updates.keys() | {
            name
            for name in self.state_dict()
            if (self.is_trained(name) or name.startswith(tuple(without_pointer)))
            and name.removeprefix("language_model.") not in tied
        }

    def save_pretrained(  # type: ignore[override]  # and not all that the mixin takes
        self, save_directory: str | Path, state_dict: dict[str, Tensor] | None = None, **options: Any
    ) -> None:
        """Write the configuration and what was trained (`trained_keys`) to a folder.

        Args:
            save_directory: the checkpoint folder.
            state_dict: weights to take instead of the model's own (the Trainer gathers them from several devices).
            options: of transformers' `save_pretrained` (`push_to_hub`, …).

        Raises:
            ConfigError: it is quantized; its rounded weights would be taken for whole ones.
        """
        if is_quantized(self):
            raise ConfigError("a quantized model cannot be saved: load it without quantization, which loses nothing")
        wanted = self.trained_keys()
        weights = self.state_dict() | self.merged_updates if state_dict is None else state_dict
        weights = {name: weights[name] for name in sorted(wanted)}
        with self._as_saved():
            super().save_pretrained(save_directory, state_dict=weights, **options)

    @contextmanager
    def _as_saved(self) -> Iterator[None]:
        """The configuration of a checkpoint, to be shared.

        It names no folder of this machine but the pointers', and does not point to a language model of which the
        checkpoint holds every weight.
        """
        for part in (self.config.encoder_config, self.config.text_config):
            part.name_or_path = ""
        names = ("language_model", "language_model_revision", "language_model_fingerprint")
        pointers = {name: getattr(self.config, name) for name in names}
        try:
            if self.config.train_language_model == "full":
                for name in names:
                    setattr(self.config, name, None)
            yield
        finally:
            for name, pointer in pointers.items():
                setattr(self.config, name, pointer)

    @classmethod
    def from_parts(
        cls: type[Model],
        config: ASRDogeConfig,
        *,
        dtype: torch.dtype = torch.float32,
        quantization: Quantization = "none",
        skip_encoder_weights: bool = False,
        for_inference: bool = False,
    ) -> Model:
        """The frozen parts that `config` points to, with an untrained adapter.

        With `quantization`, some of it is still whole: parts with random weights, a head tied to the token embedding,
        and a language model that was trained too. With `skip_encoder_weights` the model reads speech
        embeddings only; with `for_inference` it is not to be trained.

        Raises:
            CheckpointError: a part cannot be found or loaded, or has changed since its fingerprint was taken.
        """
        encoder = language_model = None
        if config.speech_encoder is not None:
            # What of the encoder was trained comes from the checkpoint, and can be rounded only then.
            is_frozen = config.train_encoder == "none"
            rounding: Quantization = quantization if is_frozen else "none"
            encoder = load_frozen_encoder(config, dtype, rounding, skip_weights=skip_encoder_weights)
        if config.language_model is not None:
            language_model = load_frozen_language_model(config, dtype, quantization)
        model = cls(config, encoder=encoder, language_model=language_model, for_inference=for_inference)
        model.adapter.match_scale(model.sample_token_embeddings())
        return model.to(dtype)  # type: ignore[arg-type]  # transformers wraps `to`, and hides its signature

    @classmethod
    @one_at_a_time
    def from_pretrained(  # type: ignore[override]  # and not all that the mixin takes
        cls: type[Model],
        pretrained_model_name_or_path: str | Path,
        *,
        config: ASRDogeConfig | None = None,
        revision: str | None = None,
        dtype: torch.dtype | str | None = None,
        device_map: Any = None,
        quantization: Quantization = "none",
        for_inference: bool = False,
        **_: Any,
    ) -> Model:
        """A trained model: the frozen parts its configuration points to, and the checkpoint's own weights.

        Args:
            pretrained_model_name_or_path: checkpoint folder, hub id, or bundled name (`english`, `nano`).
            config: used instead of the checkpoint's own.
            revision: of a hub id.
            dtype: of the weights in memory; default float32.
            device_map: a device for the whole model (`"cuda"`, `torch.device(...)`).
            quantization: `int8` for matrices of 8 bits, on the CPU only (see `asr_doge.models.quantization`).
            for_inference: whether the model is only used and not trained; LoRA's updates of the encoder are then merged
                into its weights.
            _: options of the Auto classes that have no meaning here.

        Raises:
            CheckpointError: something is missing, unexpected, damaged, or not an ASR-Doge checkpoint.
        """
        reference = find_model(pretrained_model_name_or_path, revision)
        config = config or load_asr_doge_config(reference)
        model = cls.from_parts(
            config, dtype=_resolve_dtype(dtype), quantization=quantization, for_inference=for_inference
        )
        tensors = read_weights(reference, lambda key: key)
        check_keys(model.trained_keys(), tensors.keys(), f"checkpoint '{reference.name}'")
        check_shapes(model.state_dict(), tensors, f"checkpoint '{reference.name}'")
        model.load_state_dict(tensors, strict=False)
        if for_inference and config.speech_encoder is not None:  # else its weights without them would be lost
            updates = merge_updates(model.encoder)
            model.merged_updates = {f"encoder.{name}": update for name, update in updates.items()}
        if quantization == "int8":  # what `from_parts` had to leave
            quantize_linear_layers(model.encoder)
            quantize_linear_layers(model.language_model)
        model.generation_config = load_generation_config(reference)
        model.name_or_path = reference.name
        return model.to(device_map) if device_map is not None else model


def _resolve_dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    if isinstance(dtype, str):
        return getattr(torch, dtype) if dtype != "auto" else torch.float32
    return dtype or torch.float32
