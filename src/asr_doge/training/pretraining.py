"""Make a small model from nothing: the recipe of the bundled nano model.

Promises: four stages, each a transformers Trainer run on generated examples: (1) the conformer learns characters by
CTC; (2) the language model learns to transcribe its own token embeddings, stretched and noisy; (3) encoder and language
model together learn to transcribe speech, through an adapter that is then discarded; (4) the same with longer strings.
The results stay frozen, and `asr-doge train` trains an adapter on top, from a random start, like any user's. The same
seed and machine give the same weights. An interrupted run continues at its last checkpoint, with its original recipe.

nano's language model therefore knows digit strings and little else. A published pair (Granite, Doge) needs none of
this.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import (
    GraniteSpeechConfig,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.utils import SAFE_WEIGHTS_NAME

from asr_doge.audio.log_mel import FEATURE_SIZE
from asr_doge.data.digits import DIGIT_WORDS, read_fsdd
from asr_doge.data.manifest import read_manifest
from asr_doge.errors import CheckpointError
from asr_doge.models import ASRDogeConfig, ASRDogeForConditionalGeneration, ASRDogeProcessor
from asr_doge.models.encoders import length_mask
from asr_doge.models.encoders.granite_speech import GraniteSpeechEncoder
from asr_doge.models.language_model import build_language_model, small_doge_config
from asr_doge.training.arguments import pretraining_arguments, train_or_resume
from asr_doge.training.ctc_loss import ctc_loss
from asr_doge.training.pretraining_configuration import PretrainConfig
from asr_doge.training.pretraining_speech import (
    CURRICULUM,
    LAST_DIFFICULTY,
    LONG_DIFFICULTY,
    Difficulty,
    PretrainingSpeech,
    collate_features,
)
from asr_doge.training.pretraining_text import (
    StretchedTokens,
    StretchedTokenStage,
    TiedStage,
    build_tokenizer,
    collate_stretched_tokens,
)
from asr_doge.training.recipes import refuse_another_recipe, store_recipe

CTC_VOCABULARY = 128
"""CTC ids are ASCII character codes; 0 is the blank."""
CTC_WEIGHT = 0.3
"""Share of the CTC loss in stage 3: enough to keep the head's drafts good."""
LONGEST_SENTENCE_SECONDS = 3.6
"""Longest sentence; a longer one would determine the length of its whole batch."""


def build_encoder(config: PretrainConfig) -> GraniteSpeechEncoder:
    """A Granite Speech encoder of the configured size with random weights."""
    hidden_dim, heads = config.encoder_hidden_dim, config.encoder_hidden_dim // 32
    encoder = GraniteSpeechEncoder(
        GraniteSpeechConfig(
            encoder_config={
                "input_dim": FEATURE_SIZE,
                "num_layers": config.encoder_layers,
                "hidden_dim": hidden_dim,
                "num_heads": heads,
                "output_dim": CTC_VOCABULARY,
                "context_size": 200,
                "max_pos_emb": 200,
                "conv_kernel_size": 15,
                "dropout": 0.0,  # augmentation replaces dropout, and drawing the masks took a sixth of the time
            },
            projector_config={
                "model_type": "blip_2_qformer",
                "hidden_size": hidden_dim,
                "num_hidden_layers": 2,
                "num_attention_heads": heads,
                "intermediate_size": 2 * hidden_dim,
                "encoder_hidden_size": hidden_dim,
                "cross_attention_frequency": 1,
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
            },
            # Only the width is used: it is that of the projector's output.
            text_config={"model_type": "granite", "hidden_size": config.speech_embedding_dim},
            has_lora_adapter=False,
        )
    )
    for module in encoder.encoder.modules():
        # transformers initializes every weight at a scale of 0.02, which suits layers ten times as wide; with PyTorch's
        # own initialization the CTC loss fell to a third in half the steps.
        if isinstance(module, nn.Linear | nn.Conv1d):
            module.reset_parameters()
    return encoder


class CTCStage(nn.Module):
    """Stage 1: the conformer with its CTC head."""

    def __init__(self, encoder: GraniteSpeechEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(
        self, input_features: Tensor, input_lengths: Tensor, characters: Tensor, character_lengths: Tensor
    ) -> dict[str, Tensor]:
        """The loss of a `collate_ctc` batch."""
        logits = self.encoder.ctc_logits(input_features, input_lengths)
        return {"loss": ctc_loss(logits, input_lengths, characters, character_lengths)}


def collate_ctc(clips: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """A batch of features, and `characters` `[B, L]` with `character_lengths` `[B]`."""
    ids = [torch.tensor(list(clip["text"].encode("ascii")), dtype=torch.long) for clip in clips]  # float if empty
    return collate_features(clips) | {
        "characters": pad_sequence(ids, batch_first=True),
        "character_lengths": torch.tensor([len(row) for row in ids]),
    }


class TextStage(TiedStage):
    """Stage 3: the whole model, with the language model's loss and the CTC head's."""

    def __init__(self, model: ASRDogeForConditionalGeneration) -> None:
        super().__init__()
        self.model = model
        self.model.requires_grad_(True)

    def forward(
        self,
        input_features: Tensor,
        input_lengths: Tensor,
        characters: Tensor,
        character_lengths: Tensor,
        labels: Tensor,
    ) -> dict[str, Tensor]:
        """The loss of a `collate_ctc` batch with `labels` `[B, L]`."""
        encoder = self.model.encoder
        assert isinstance(encoder, GraniteSpeechEncoder)
        states = encoder.conformer(input_features, input_lengths)
        draft_loss = ctc_loss(encoder.encoder.out(states), input_lengths, characters, character_lengths)
        speech = encoder.project(states, input_lengths)
        mask = length_mask(encoder.output_lengths(input_lengths), speech.shape[1])
        text_loss = self.model(speech_embeddings=speech, attention_mask=mask.long(), labels=labels).loss
        return {"loss": text_loss + CTC_WEIGHT * draft_loss}


def build_model(
    config: PretrainConfig, encoder: GraniteSpeechEncoder, tokenizer: PreTrainedTokenizerFast
) -> ASRDogeForConditionalGeneration:
    """The whole small model; everything except the encoder has random weights."""
    text_config = small_doge_config(tokenizer, config.text_hidden_dim, config.text_layers)
    processor = ASRDogeProcessor(GraniteSpeechEncoder.feature_extractor(encoder.config), tokenizer)
    model_config = ASRDogeConfig(
        encoder_config=encoder.config,
        text_config=text_config,
        speech_encoder=None,
        language_model=None,
        prompt_ids=processor.prompt_ids().tolist(),
        adapter_hidden_dim=2 * config.text_hidden_dim,
        train_language_model="full",
    )
    return ASRDogeForConditionalGeneration(
        model_config, encoder=encoder, language_model=build_language_model(text_config)
    )


@dataclass(frozen=True)
class Stage:
    """A Trainer run: `steps` is the length of its learning-rate schedule, `until` the fraction of it that is run."""

    name: str
    steps: int
    learning_rate: float
    until: float = 1.0


class StopAt(TrainerCallback):
    """End a run before its schedule does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Stop after the wanted step."""
        control.should_training_stop |= state.global_step >= self.step
        return control


def pretrain(config: PretrainConfig) -> None:
    """Run all stages and write `encoder/` and `language_model/` in the output folder, each loadable by name.

    Raises:
        DataError: recordings or manifest are missing.
        ConfigError: the output folder has stages of another recipe.
        CheckpointError: a finished stage there has unexpected weights.
    """
    stages, recipe = Path(config.output_dir) / "stages", _recipe(config)
    refuse_another_recipe(stages, recipe)
    set_seed(config.seed)
    encoder = build_encoder(config)
    stage = Stage("ctc", config.ctc_steps, config.learning_rate, config.ctc_until)
    speech = _speech(config, config.ctc_steps, CURRICULUM, config.seed)
    store_recipe(stages, recipe)
    _run_stage(stage, config, CTCStage(encoder), speech, collate_ctc)

    tokenizer = build_tokenizer(config.text_vocab_size)
    processor = ASRDogeProcessor(GraniteSpeechEncoder.feature_extractor(encoder.config), tokenizer)
    set_seed(config.seed)  # so that later stages start alike whether stage 1 ran in this process or an earlier one
    model = build_model(config, encoder, tokenizer)

    stage = Stage("language", config.language_steps, config.language_learning_rate)
    examples = StretchedTokens(
        config.language_steps * config.batch_size, processor, model.config.prompt_ids or [], config.seed
    )
    model.language_model.requires_grad_(True)
    _run_stage(stage, config, StretchedTokenStage(model.language_model), examples, collate_stretched_tokens)

    def collate_text(clips: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        return collate_ctc(clips) | {"labels": processor(text=[clip["text"] for clip in clips])["labels"]}

    for number, (name, steps, learning_rate, difficulty) in enumerate(
        (
            ("text", config.text_steps, config.text_learning_rate, LAST_DIFFICULTY),
            ("long_text", config.long_text_steps, config.long_text_learning_rate, LONG_DIFFICULTY),
        ),
        start=1,
    ):
        speech = _speech(config, steps, [difficulty], config.seed + number)
        _run_stage(Stage(name, steps, learning_rate), config, TextStage(model), speech, collate_text)
    _save(config, model, encoder, tokenizer)


def _recipe(config: PretrainConfig) -> dict[str, Any]:
    """Settings that the weights depend on: all except the output folder and the number of processes."""
    recipe = {name: value for name, value in asdict(config).items() if name not in ("output_dir", "num_workers")}
    for name in ("digits_dir", "sentences_manifest"):
        if recipe[name] is not None:
            recipe[name] = os.path.abspath(recipe[name])  # noqa: PTH100 - links are the user's own business
    return recipe


def _speech(config: PretrainConfig, steps: int, curriculum: Sequence[Difficulty], seed: int) -> PretrainingSpeech:
    """Clips for a stage; in the language model's stages the only sentences are digit strings."""
    digits_only = curriculum is not CURRICULUM
    recordings = read_fsdd(Path(config.digits_dir), takes="train", without=[config.dev_speaker])
    utterances = read_manifest(Path(config.sentences_manifest)) if config.sentences_manifest else []
    sentences = [
        (utterance.audio_path, text)
        for utterance in utterances
        if utterance.duration <= LONGEST_SENTENCE_SECONDS
        and (text := utterance.text.lower()).isascii()
        and (not digits_only or set(text.split()) <= set(DIGIT_WORDS))
    ]
    return PretrainingSpeech(
        steps * config.batch_size,
        config.batch_size,
        recordings,
        sentences,
        config.digit_sentence_share if digits_only else config.sentence_share,
        seed,
        curriculum,
    )


def _run_stage(
    stage: Stage,
    config: PretrainConfig,
    module: nn.Module,
    examples: Dataset[Any],
    collate: Callable[[Sequence[dict[str, Any]]], dict[str, Tensor]],
) -> None:
    """Train `module`; continue from the last checkpoint of an interrupted run, and do not repeat a finished one."""
    folder = Path(config.output_dir) / "stages" / stage.name
    finished = folder / "final" / SAFE_WEIGHTS_NAME
    if finished.is_file():
        missing, unexpected = module.load_state_dict(load_file(finished), strict=False)
        missing = [name for name in missing if not name.endswith("lm_head.weight")]  # see `TextStage.state_dict`
        if missing or unexpected:
            raise CheckpointError(
                f"{finished} is not of this recipe ({len(missing)} weights missing, {len(unexpected)} unexpected):"
                f" delete {finished.parent}"
            )
        return
    arguments = pretraining_arguments(
        folder,
        stage.steps,
        config.batch_size,
        stage.learning_rate,
        config.seed,
        dataloader_num_workers=config.num_workers,
    )
    callbacks: list[TrainerCallback] = [StopAt(round(stage.until * stage.steps))]
    trainer = Trainer(module, arguments, data_collator=collate, train_dataset=examples, callbacks=callbacks)
    train_or_resume(trainer)
    trainer.save_model(str(finished.parent))


def _save(
    config: PretrainConfig,
    model: ASRDogeForConditionalGeneration,
    encoder: GraniteSpeechEncoder,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Write the frozen parts in half precision, for users' checkpoints to point to."""
    encoder_dir, text_dir = Path(config.output_dir) / "encoder", Path(config.output_dir) / "language_model"
    encoder.config.save_pretrained(encoder_dir)
    halves = {
        name: tensor.half().contiguous() if tensor.is_floating_point() else tensor
        for name, tensor in encoder.state_dict().items()
    }
    save_file(halves, encoder_dir / "model.safetensors", metadata={"format": "pt"})
    model.language_model.half().save_pretrained(text_dir)
    tokenizer.save_pretrained(text_dir)
