"""The model, its parts, and the one way to load it. Importing this registers the classes with transformers."""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForCausalLM,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES

from asr_doge.models.configuration_asr_doge import ASRDogeConfig
from asr_doge.models.ctc_head_checkpoints import CTCHeadConfig
from asr_doge.models.early_doge import EarlyDogeConfig, EarlyDogeForCausalLM
from asr_doge.models.feature_extraction_asr_doge import LogMelFeatureExtractor, WaveformFeatureExtractor
from asr_doge.models.loading import (
    LoadedEncoder,
    LoadedModel,
    assemble_model,
    find_device,
    load_encoder_alone,
    load_model,
)
from asr_doge.models.modeling_asr_doge import ASRDogeForConditionalGeneration
from asr_doge.models.parameters import ParameterCounts
from asr_doge.models.processing_asr_doge import ASRDogeProcessor

AutoConfig.register(ASRDogeConfig.model_type, ASRDogeConfig)
AutoConfig.register(CTCHeadConfig.model_type, CTCHeadConfig)
AutoModelForSpeechSeq2Seq.register(ASRDogeConfig, ASRDogeForConditionalGeneration)
AutoConfig.register(EarlyDogeConfig.model_type, EarlyDogeConfig)
AutoModelForCausalLM.register(EarlyDogeConfig, EarlyDogeForCausalLM)
AutoFeatureExtractor.register(ASRDogeConfig, LogMelFeatureExtractor)
AutoFeatureExtractor.register(CTCHeadConfig, WaveformFeatureExtractor)  # found by its name, of whatever model
AutoProcessor.register(ASRDogeConfig, ASRDogeProcessor)
# transformers' pipeline distinguishes sequence-to-sequence from CTC models by this table, which `register` does not
# update.
MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES[ASRDogeConfig.model_type] = ASRDogeForConditionalGeneration.__name__

__all__ = [
    "ASRDogeConfig",
    "ASRDogeForConditionalGeneration",
    "ASRDogeProcessor",
    "CTCHeadConfig",
    "LoadedEncoder",
    "LoadedModel",
    "LogMelFeatureExtractor",
    "ParameterCounts",
    "WaveformFeatureExtractor",
    "assemble_model",
    "find_device",
    "load_encoder_alone",
    "load_model",
]
