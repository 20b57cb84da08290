"""The warm-up stage of `train`: the adapter learns by CTC before the language model is used.

Promises: afterwards the adapter gives embeddings close to the language model's token embeddings, at their scale; the
language model is not run; all data comes from the feature cache. An interrupted stage is continued, a finished one is
not repeated, and either way the run after it is the same.
It does not know the run that follows.
"""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainingArguments, set_seed
from transformers.trainer_utils import sort_checkpoints

from asr_doge.errors import ConfigError
from asr_doge.models import LoadedModel
from asr_doge.models.adapter_ctc import AdapterCTCHead
from asr_doge.models.ctc_head import HeadedEncoder
from asr_doge.training.arguments import arguments_on, logging_steps, use_precision
from asr_doge.training.callbacks import MarkComplete, train_until_stopped
from asr_doge.training.configuration import TrainConfig
from asr_doge.training.ctc_examples import CTCExamples
from asr_doge.training.ctc_trainer import CTCHeadStage, CTCTrainer
from asr_doge.training.datasets import CachedSpeechDataset, UtteranceDataset
from asr_doge.training.heads import adapter_settings, token_labels
from asr_doge.training.processes import own_device, process_count
from asr_doge.training.resuming import Lineage, is_complete

FOLDER = "warm_up"
"""Name of the stage's folder in that of the run."""
FINISHED = "finished.safetensors"
STEPS_BETWEEN_CHECKPOINTS = 50


def resolve_warm_up(config: TrainConfig) -> bool:
    """Whether the run begins with the stage: as the flag says, else whenever it is possible.

    Raises:
        ConfigError: it was requested and is not possible.
    """
    if config.warm_up == "none":
        return False
    obstacle = None
    if not config.features_dir:
        obstacle = "it learns from a feature cache: run 'asr-doge features' first"
    elif process_count() > 1 and not (Path(config.output_dir) / FOLDER / FINISHED).is_file():
        obstacle = "it is run by one process: begin the run by one, and go on by --resume_from latest with several"
    if config.warm_up == "ctc" and obstacle:
        raise ConfigError(f"--warm_up ctc: {obstacle}")
    return obstacle is None and (config.warm_up == "ctc" or config.train_language_model != "full")


def warm_up(
    config: TrainConfig, loaded: LoadedModel, train: UtteranceDataset, dev: UtteranceDataset, bf16: bool
) -> None:
    """Run the stage, or load its result if it was run before.

    Args:
        config: of the run.
        loaded: the model, whose adapter is trained in place.
        train: examples of the run, from the cache.
        dev: examples for its evaluation.
        bf16: whether steps run in mixed precision, as those of the run do.

    Raises:
        KeyboardInterrupt: after Ctrl-C, with the stage saved.
    """
    assert isinstance(train, CachedSpeechDataset)
    assert isinstance(dev, CachedSpeechDataset)
    folder = Path(config.output_dir) / FOLDER
    head = _head(loaded, train)
    stage = CTCHeadStage(head, adapter=head.adapter)
    finished = folder / FINISHED
    if finished.is_file():
        stage.load_state_dict(load_file(finished))
    else:
        trainer = _trainer(config, stage, loaded, train, dev, bf16)
        _run(trainer, folder)
        print(f"warm-up: {config.warm_up_steps} steps of CTC, {_adapter_rates(trainer)}", file=sys.stderr)
        _match_loudness(loaded, dev)
        folder.mkdir(parents=True, exist_ok=True)
        partial = finished.with_suffix(".partial")
        save_file(stage.state_dict(), partial, {"format": "pt"})
        partial.rename(finished)
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    set_seed(config.seed)  # so that the run is the same whether the stage ran in this process or an earlier one


def forget_warm_up(output_dir: Path) -> None:
    """Remove the files of an earlier run's stage."""
    shutil.rmtree(output_dir / FOLDER, ignore_errors=True)


def _head(loaded: LoadedModel, train: CachedSpeechDataset) -> AdapterCTCHead:
    """The model's own head if it is the adapter, else one for this stage only."""
    encoder = loaded.model.encoder
    if isinstance(encoder, HeadedEncoder) and isinstance(encoder.ctc_head, AdapterCTCHead):
        return encoder.ctc_head
    settings = adapter_settings(loaded.processor, train.utterances)
    embedding = loaded.model.get_input_embeddings()
    return AdapterCTCHead(settings, loaded.model.adapter, embedding).to(loaded.model.device)


def _trainer(
    config: TrainConfig,
    stage: CTCHeadStage[AdapterCTCHead],
    loaded: LoadedModel,
    train: CachedSpeechDataset,
    dev: CachedSpeechDataset,
    bf16: bool,
) -> CTCTrainer:
    ids = token_labels(loaded.processor, stage.head.settings)
    lineage = Lineage(FOLDER)
    seconds = sum(utterance.duration for utterance in train.utterances)
    return CTCTrainer(
        stage,
        _arguments(config, bf16),
        CTCExamples(train.utterances, train.cache, ids, config.seed, varied=True),
        CTCExamples(dev.utterances, dev.cache, ids),
        config.batch_seconds or config.batch_size * seconds / len(train.utterances),
        loaded.model.encoder.frame_rate_hz,
        stage.head.vocabulary.text,
        callbacks=[MarkComplete(1, lineage, asdict(lineage))],
    )


def _arguments(config: TrainConfig, bf16: bool) -> TrainingArguments:
    arguments = arguments_on(
        own_device(config),
        TrainingArguments,
        output_dir=str(Path(config.output_dir) / FOLDER),
        max_steps=config.warm_up_steps,
        learning_rate=config.learning_rate,
        warmup_steps=config.warm_up_steps // 10,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        save_steps=min(STEPS_BETWEEN_CHECKPOINTS, config.warm_up_steps),
        logging_steps=logging_steps(STEPS_BETWEEN_CHECKPOINTS),
        report_to="none",
        seed=config.seed,
    )
    use_precision(arguments, bf16)
    return arguments


def _run(trainer: CTCTrainer, folder: Path) -> None:
    """Train to the end of the stage, continuing from an interruption if there was one."""
    folders = [Path(name) for name in sort_checkpoints(str(folder))] if folder.is_dir() else []
    whole = [name for name in folders if is_complete(name)]
    if train_until_stopped(trainer, whole[-1] if whole else None):
        raise KeyboardInterrupt


def _adapter_rates(trainer: CTCTrainer) -> str:
    """The adapter's own transcripts of the dev set."""
    metrics = trainer.evaluate()
    return f"dev WER {100 * metrics['eval_wer']:.2f} %, CER {100 * metrics['eval_cer']:.2f} % by the adapter alone"


@torch.no_grad()
def _match_loudness(loaded: LoadedModel, dev: CachedSpeechDataset) -> None:
    """Set the adapter's scale, which CTC by cosines leaves free, to that of token embeddings, on some clips."""
    model = loaded.model
    wanted = model.sample_token_embeddings().float().square().mean().sqrt()
    rows: list[Tensor] = []
    for utterance in _spread(dev, 8):
        speech = dev.cache[utterance].to(model.device, model.dtype)[None]
        adapted, _ = model.adapter(speech, torch.tensor([speech.shape[1]], device=model.device))
        rows.append(adapted[0].float())
    model.adapter.scale_output(float(wanted / torch.cat(rows).square().mean().sqrt()))


def _spread(dev: CachedSpeechDataset, count: int) -> Sequence[str]:
    """Ids of some utterances, spread over all lengths."""
    ids = [utterance.id for utterance in dev.utterances]
    return ids[:: max(1, len(ids) // count)]
