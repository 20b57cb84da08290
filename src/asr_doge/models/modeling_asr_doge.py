"""The one model class: frozen speech encoder, adapter, language model.

Promises: training and generation read the same layout, `[bos] prompt | speech | text [eos]`, left-padded, with padding
masked out of attention and loss, so that a clip's loss, logits and text do not depend on its neighbours. Frozen parts
stay in eval mode and out of the optimizer.
It does not read audio or make features (see `ASRDogeProcessor`), and knows no decoding beyond transformers' own;
`prefill` and `extend` are what `asr_doge.decoding` builds on. For checkpoints see `asr_doge.models.saving`.
"""

import copy
import math
from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from asr_doge.errors import ConfigError
from asr_doge.models.adapter_ctc import AdapterCTCHead
from asr_doge.models.adapters import Adapter
from asr_doge.models.configuration_asr_doge import ASRDogeConfig
from asr_doge.models.ctc_head import CTCHeadSettings, HeadedEncoder, with_head, without_head
from asr_doge.models.encoders import SpeechEncoder, SpeechEncoderOutput, encode, encoder_family, length_mask
from asr_doge.models.label_logits import TokenRestriction, only_labels, only_tokens
from asr_doge.models.language_model import build_language_model
from asr_doge.models.layout import IGNORED_LABEL, DecodingState, Layout, full_attention_mask, group_by_length, left_pad
from asr_doge.models.lora import add_lora_for_inference, add_trainable_lora
from asr_doge.models.parameters import ParameterCounts, count_parameters, trained_encoder_weights
from asr_doge.models.saving import SavedInParts

HEAD_PREFIX = "encoder.ctc_head."
"""Prefix of the names of a trained CTC head's weights."""


class ASRDogeForConditionalGeneration(SavedInParts, GenerationMixin):
    """Speech to text by a frozen encoder, an adapter and a causal language model.

    Args:
        config: shapes, pointers and prompt.
        encoder: an encoder with weights; by default one with random weights is built.
        language_model: a causal language model with weights; likewise.
        for_inference: whether LoRA's updates, if there are any, are only used and not trained.
    """

    config_class = ASRDogeConfig
    main_input_name = "input_features"
    base_model_prefix = ""
    _supports_sdpa = True
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # the Trainer gives `num_items_in_batch`, which it would not guess from the signature

    def __init__(
        self,
        config: ASRDogeConfig,
        *,
        encoder: SpeechEncoder | None = None,
        language_model: PreTrainedModel | None = None,
        for_inference: bool = False,
    ) -> None:
        super().__init__(config)
        # Transformers takes a class of this name for one that shifts its labels, and the Trainer would then leave each
        # row's first label out of `num_items_in_batch`. Ours is aligned: the last speech embedding predicts it.
        self.loss_type = None  # type: ignore[assignment]  # as transformers itself sets it
        encoder = encoder or encoder_family(config.encoder_config)(config.encoder_config)
        self.encoder = with_head(encoder, config.ctc_head)
        self.language_model = language_model or build_language_model(config.text_config)
        if self.language_model.config.model_type != config.text_config.model_type:  # its files did not say its layout
            config.text_config = self.language_model.config
        # What its publisher set for chatting (sampling, repetition penalty) would fill every gap in our own.
        self.language_model.generation_config = GenerationConfig()
        self.adapter = Adapter(config, self.encoder.hidden_size, self.get_input_embeddings().embedding_dim)
        if config.ctc_head is not None and config.ctc_head.get("type") == "adapter":
            self._head_by_adapter(CTCHeadSettings.read(config.ctc_head))
        self._restriction: TokenRestriction | None = None
        self._restriction_hook: RemovableHandle | None = None
        if config.vocabulary_ids is not None:
            self.restrict_vocabulary(config.vocabulary_ids)
        self.merged_updates = {}
        self.ctc_weight = 0.0
        """Weight of the CTC head's loss beside the language model's, where `forward` is given CTC labels."""
        self.post_init()
        add_lora = add_lora_for_inference if for_inference else add_trainable_lora
        if config.train_language_model == "lora":
            add_lora(self.language_model, config.lora or {})
        if config.train_encoder == "lora":  # but not of a trained head, which is trained whole
            add_lora(below := without_head(self.encoder), config.lora or {}, below.ctc_layers)
        self._trained_of_encoder = trained_encoder_weights(self.encoder, config)
        self._freeze()
        self.train(False)

    def add_ctc_head(self, settings: CTCHeadSettings) -> None:
        """Give an encoder without CTC a new head, which is then saved with the model and trained with the adapter.

        Raises:
            ConfigError: the encoder has CTC.
        """
        if self.encoder.has_ctc:
            raise ConfigError("this encoder has a CTC head already")
        self.config.ctc_head = settings.values()
        if settings.type == "adapter":
            self._head_by_adapter(settings)
        else:
            self.encoder = with_head(self.encoder, self.config.ctc_head)
        cast(HeadedEncoder, self.encoder).ctc_head.to(self.device, self.dtype)
        self._trained_of_encoder = {name.replace("encoder.", "encoder.family.", 1) for name in self._trained_of_encoder}
        self._freeze()
        self.train(False)

    def restrict_vocabulary(self, token_ids: Iterable[int] | None) -> None:
        """Let the model write these tokens and no others, or all again, from now on and in its checkpoints."""
        if self._restriction_hook is not None:
            self._restriction_hook.remove()
        self._restriction = None if token_ids is None else TokenRestriction(sorted(token_ids))
        self.config.vocabulary_ids = None if self._restriction is None else self._restriction.token_ids
        if self._restriction is not None:
            self._restriction_hook = self.language_model.register_forward_hook(self._restriction)

    def _head_by_adapter(self, settings: CTCHeadSettings) -> None:
        head = AdapterCTCHead(settings, self.adapter, self.get_input_embeddings())
        self.encoder = HeadedEncoder(self.encoder, head)

    def initialize_weights(self) -> None:
        """Do nothing: parts are initialized or loaded already, and transformers would draw their weights anew."""

    def _freeze(self) -> None:
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(self.is_trained(name))

    def is_trained(self, name: str) -> bool:
        """Whether training updates the parameter `name`."""
        if name.startswith(("adapter.", HEAD_PREFIX)):
            return True
        if name.startswith("language_model."):
            return self.config.train_language_model == "full" or ".lora_" in name
        return name in self._trained_of_encoder

    def train(self, mode: bool = True) -> "ASRDogeForConditionalGeneration":
        """Like `nn.Module.train`, but frozen parts stay in eval mode (no dropout, fixed batch statistics)."""
        super().train(mode)
        self.encoder.eval()
        if isinstance(self.encoder, HeadedEncoder):
            self.encoder.ctc_head.train(mode)
        if self.config.train_language_model == "none":
            self.language_model.eval()
        return self

    def get_input_embeddings(self) -> nn.Embedding:
        """The language model's token embedding."""
        return cast(nn.Embedding, self.language_model.get_input_embeddings())

    @torch.no_grad()
    def sample_token_embeddings(self) -> Tensor:
        """Output of the embedding module for at most 4,096 tokens, `[V, H]`; Gemma's scales its weights."""
        module = self.get_input_embeddings()
        ids = torch.arange(0, module.num_embeddings, -(-module.num_embeddings // 4096), device=module.weight.device)
        given: Tensor = module(ids)
        return given

    def get_output_embeddings(self) -> nn.Module:
        """The language model's head."""
        return cast(nn.Module, self.language_model.get_output_embeddings())

    def count_parameters(self) -> ParameterCounts:
        """Parameters of each part; works on the meta device too."""
        merged = sum(map(torch.numel, self.merged_updates.values()))
        return ParameterCounts(
            encoder=count_parameters(self.encoder) + merged,
            adapter=count_parameters(self.adapter),
            language_model=count_parameters(self.language_model),
            trainable=sum(p.numel() for p in self.parameters() if p.requires_grad) + merged,
        )

    def encode(
        self, input_features: Tensor, attention_mask: Tensor, return_ctc_logits: bool = False
    ) -> SpeechEncoderOutput:
        """Speech embeddings of a batch, without gradients where the encoder is frozen.

        Args:
            input_features: `[B, T, F]`, from the processor.
            attention_mask: `[B, T]`, 1 at real frames.
            return_ctc_logits: also return the CTC head's logits.
        """
        needs_gradients = torch.is_grad_enabled() and self.config.train_encoder != "none"
        with torch.set_grad_enabled(needs_gradients):
            return encode(self.encoder, input_features, attention_mask, return_ctc_logits)

    def forward(
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        speech_embeddings: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        prompt_ids: Tensor | None = None,
        ctc_labels: Tensor | None = None,
    ) -> CausalLMOutputWithPast:
        """Next-token logits of the text that follows the speech, and the loss on it.

        Args:
            input_features: `[B, T, F]`, from the processor; or
            speech_embeddings: `[B, T', D]`, what `encode` made of them (the feature cache holds these).
            attention_mask: `[B, T]` or `[B, T']`, 1 at the real frames of whichever of the two is given.
            labels: `[B, L]`, token ids of the text and the end-of-sequence token; -100 at padding.
            num_items_in_batch: tokens over which the loss is averaged; default, those of this batch. (The Trainer
                gives it when it accumulates gradients.)
            prompt_ids: `[B, P]`, token ids of each row's prompt, -100 at padding; default, the configuration's.
            ctc_labels: `[B, L']`, ids of the CTC head, -100 at padding; its loss, times `ctc_weight`, is added.

        Returns:
            `loss` (with `labels`) and `logits` `[B, L + 1, V]`, or `[B, 1, V]` without labels: the predictions made at
            the last speech embedding and after each text token, right-aligned over the batch. In training mode only
            those that a label is compared with, `[1, labels, V]`, V the tokens that may be written: a large vocabulary
            costs more than all the rest.
        """
        speech_embeddings, lengths = self._speech_embeddings(input_features, attention_mask, speech_embeddings)
        inputs = self._layout(speech_embeddings, lengths, labels, prompt_ids)
        kept = 1 if labels is None else labels.shape[1] + 1
        # Labels padded past what the longest row holds leave fewer positions than L + 1.
        targets = None if inputs.labels is None else inputs.labels[:, 1 - min(kept, inputs.labels.shape[1]) :]
        loss = None
        if targets is None:
            logits = self._logits(inputs, kept)
        else:
            if self.training:
                logits, compared = self._packed_logits(inputs, targets, kept), targets[targets != IGNORED_LABEL]
                predicted = logits
            else:
                logits, compared = self._logits(inputs, kept), targets.flatten()
                predicted = logits[:, :-1]
            total = self._cross_entropy(predicted.float().flatten(0, 1), compared)
            count = (targets != IGNORED_LABEL).sum() if num_items_in_batch is None else num_items_in_batch
            if ctc_labels is not None and isinstance(self.encoder, HeadedEncoder):
                total = total + self.ctc_weight * self.encoder.summed_ctc_loss(speech_embeddings, lengths, ctc_labels)
            loss = total / torch.as_tensor(count).clamp(min=1)  # of no tokens at all it is 0
        return CausalLMOutputWithPast(loss=loss, logits=logits)

    def _logits(self, inputs: Layout, kept: int) -> Tensor:
        """Logits `[B, kept, V]` of the last positions."""
        logits: Tensor = self.language_model(**_as_options(inputs), logits_to_keep=kept, use_cache=False).logits
        return logits

    def _packed_logits(self, inputs: Layout, targets: Tensor, kept: int) -> Tensor:
        """Logits `[1, labels, V]` of the last positions that have a label, V the tokens that may be written."""
        options = {**_as_options(inputs), "logits_to_keep": kept, "use_cache": False}
        with only_labels(self.get_output_embeddings(), targets):
            if self._restriction is None:
                output = self.language_model(**options)
            else:
                output = only_tokens(self.language_model, self._restriction.ids(self.device), **options)
        logits: Tensor = output.logits
        return logits

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The sum over labels `[N]` that are not -100; infinite if one of them may not be written."""
        if self._restriction is None:
            return F.cross_entropy(logits, labels, ignore_index=IGNORED_LABEL, reduction="sum")
        numbers, are_written = self._restriction.numbers(labels)
        is_label = labels != IGNORED_LABEL
        packs = logits.shape[-1] == len(self._restriction.token_ids)
        compared = (numbers if packs else labels).masked_fill(~(is_label & are_written), IGNORED_LABEL)
        total = F.cross_entropy(logits, compared, ignore_index=IGNORED_LABEL, reduction="sum")
        return total.masked_fill((is_label & ~are_written).any(), math.inf)

    @torch.no_grad()
    def generate(  # type: ignore[override]  # speech in, where the mixin takes ids
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        speech_embeddings: Tensor | None = None,
        labels: Tensor | None = None,
        prompt_ids: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        **options: Any,
    ) -> Any:
        """Token ids of the text, `[B, new tokens]`, by the language model's own `generate` with its KV cache.

        Args:
            input_features, attention_mask, speech_embeddings, prompt_ids: as in `forward`.
            labels: not used; the Trainer hands over whole batches.
            generation_config: default, the one saved with the model.
            options: any of transformers' generation options (`num_beams`, `max_new_tokens`, …).
        """
        speech, lengths = self._speech_embeddings(input_features, attention_mask, speech_embeddings)
        inputs = self._layout(speech, lengths, prompt_ids=prompt_ids)
        generation_config = copy.deepcopy(generation_config or self.generation_config)
        others = generation_config.update(**options)
        if (generation_config.num_beams or 1) > 1 and generation_config.length_penalty is None:
            # Transformers' own is 1, the mean over tokens, by which a repetition that never ends beats every ending.
            generation_config.length_penalty = 0.0
        return self.language_model.generate(  # type: ignore[operator]  # any causal LM has it
            inputs_embeds=inputs.embeddings, attention_mask=inputs.mask, generation_config=generation_config, **others
        )

    @torch.no_grad()
    def prefill(
        self, speech_embeddings: Tensor, attention_mask: Tensor, text: Tensor, prompt_ids: Tensor | None = None
    ) -> tuple[Tensor, DecodingState]:
        """Read prompt, speech and text in one pass, to continue from later with `extend`.

        Args:
            speech_embeddings, attention_mask: `[B, T', D]` and `[B, T']`, as in `forward`.
            text: `[B, L]`, token ids, -100 at padding.
            prompt_ids: as in `forward`.

        Returns:
            Logits `[B, L + 1, V]`, as in `forward` with labels, and the decoding state.
        """
        speech, read = self._speech_embeddings(None, attention_mask, speech_embeddings)
        inputs = self._layout(speech, read, text, prompt_ids)
        lengths, kept = inputs.mask.sum(dim=1), 1 + (text != IGNORED_LABEL).sum(dim=1)
        groups = (
            group_by_length(lengths) if lengths.device.type == "cpu" else [torch.arange(len(text), device=text.device)]
        )
        logits, caches = None, []
        for group in groups:
            width, places = int(lengths[group].max()), int(kept[group].max())
            output = self.language_model(
                inputs_embeds=inputs.embeddings[group, -width:],
                attention_mask=inputs.mask[group, -width:],
                position_ids=inputs.position_ids[group, -width:],
                logits_to_keep=places,
                use_cache=True,
            )
            if len(groups) == 1:
                return output.logits, DecodingState(output.past_key_values, inputs.mask)
            if logits is None:
                logits = output.logits.new_zeros(len(text), text.shape[1] + 1, output.logits.shape[2])
            logits[group, -places:] = output.logits
            caches.append(output.past_key_values)
        assert logits is not None
        return logits, DecodingState.joined(caches, groups, inputs.mask)

    @torch.no_grad()
    def extend(self, state: DecodingState, text: Tensor) -> Tensor:
        """Read more text onto the KV cache of `state`, which then holds it too.

        Args:
            state: of the same rows.
            text: `[B, L]`, token ids, -100 at padding; at least one token a row, and L in one of them.

        Returns:
            Logits `[B, L, V]`, right-aligned: the predictions made after each token.
        """
        inputs = left_pad(*self._embed(text), None, text.shape[1])
        past = state.mask.sum(dim=1, keepdim=True)
        state.mask = torch.cat([state.mask, inputs.mask], dim=1)
        return self.language_model(
            inputs_embeds=inputs.embeddings,
            attention_mask=state.mask,
            position_ids=past + inputs.position_ids,
            past_key_values=state.cache,
            use_cache=True,
        ).logits

    def _speech_embeddings(
        self, input_features: Tensor | None, attention_mask: Tensor | None, speech_embeddings: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Speech embeddings `[B, T', D]`, given or encoded, and their lengths `[B]`."""
        if input_features is not None and speech_embeddings is None:
            if attention_mask is None:
                attention_mask = full_attention_mask(input_features, self.encoder.num_frames(input_features))
            encoded = self.encode(input_features, attention_mask)
            return encoded.speech_embeddings, encoded.speech_lengths
        if speech_embeddings is not None and input_features is None:
            if attention_mask is None:
                attention_mask = full_attention_mask(speech_embeddings, speech_embeddings.shape[1])
            return speech_embeddings, attention_mask.long().sum(dim=1)
        raise ValueError("give either input_features or speech_embeddings")

    def _layout(
        self, speech_embeddings: Tensor, lengths: Tensor, labels: Tensor | None = None, prompt_ids: Tensor | None = None
    ) -> Layout:
        """Adapt, embed and left-pad prompt, speech and text."""
        speech, lengths = self.adapter(speech_embeddings.to(self.dtype), lengths)
        speech_mask = length_mask(lengths, speech.shape[1])

        if prompt_ids is None:
            prompt_ids = torch.tensor([self.config.prompt_ids or []], dtype=torch.long, device=speech.device)
        prompt, prompt_mask = self._embed(prompt_ids.expand(len(speech), -1))
        parts, masks = [prompt, speech], [prompt_mask, speech_mask]
        if labels is not None:
            text, text_mask = self._embed(labels)
            parts.append(text)
            masks.append(text_mask)
        return left_pad(torch.cat(parts, dim=1), torch.cat(masks, dim=1), labels)

    def _embed(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings `[B, L, H]` of token ids `[B, L]`, -100 at padding, and the mask `[B, L]` of the real ones."""
        real = ids != IGNORED_LABEL
        return self.get_input_embeddings()(ids.masked_fill(~real, 0)), real


def _as_options(inputs: Layout) -> dict[str, Tensor]:
    """A batch in the names of transformers' language models."""
    return {"inputs_embeds": inputs.embeddings, "attention_mask": inputs.mask, "position_ids": inputs.position_ids}
