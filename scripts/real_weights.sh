#!/bin/sh
# Whisper base and Gemma 270M, from nothing to a table: does an adapter alone learn to speak to a frozen language model?
#
#   scripts/real_weights.sh ./processed gemma-3-270m-q4_k_m.gguf ./real_weights
#
# Promises: PROCESSED holds train_manifest.json, dev_manifest.json and test_manifest.json, from `asr-doge process`
# (speechocean762 and ljspeech, joined; synthesised read speech beside them if there is any); LANGUAGE_MODEL is a folder, a
# hub id or a .gguf file. Every stage takes up where it was interrupted, so run it again after any failure; everything it
# makes is in OUTPUT_DIR and PROCESSED/features. First the adapter alone, warmed up by CTC, before the frozen language model;
# then the same run goes on with LoRA beside it. Both are benchmarked, with Whisper's own decoder and pocketsphinx on the same
# clips in the same run. Hours on two cores: EPOCHS of the adapter alone (default 1) and LORA_EPOCHS (default 3).
set -eu

PROCESSED=${1:?folder of manifests}
LANGUAGE_MODEL=${2:?language model}
OUTPUT_DIR=${3:-./real_weights}
EPOCHS=${EPOCHS:-1}
LORA_EPOCHS=${LORA_EPOCHS:-3}
PYTHON=${PYTHON:-python}
WHISPER=$OUTPUT_DIR/whisper-base
RUN=$OUTPUT_DIR/run
ALONE="{epochs: $EPOCHS, adapter_learning_rate: 0.001}"
WITH_LORA="{epochs: $LORA_EPOCHS, adapter_learning_rate: 0.0005, language_model_learning_rate: 0.0005}"

doge() { "$PYTHON" -m asr_doge "$@"; }

train() { # FLAG...
    doge train --data_dir "$PROCESSED" --features_dir "$PROCESSED/features" --output_dir "$RUN" \
        --speech_encoder "$WHISPER" --encoder_window clip --language_model "$LANGUAGE_MODEL" --vocabulary texts \
        --adapter_stack 5 --adapter_output_norm --train_language_model lora --lora_rank 16 \
        --warm_up ctc --warm_up_steps 600 --ctc_weight 0.2 --ctc_head adapter \
        --batch_seconds 48 --learning_rate 1e-3 --warmup_steps 50 --eval_steps 100 --save_steps 100 \
        --eval_samples 60 --patience 50 --no_wandb "$@"
}

measure() { # NAME
    ls "$OUTPUT_DIR/benchmark-$1"/*.json > /dev/null 2>&1 ||
        doge benchmark --checkpoint_dir "$OUTPUT_DIR/$1" --data_dir "$PROCESSED" --decoder greedy \
            --peer pocketsphinx "hf:$WHISPER" --output_dir "$OUTPUT_DIR/benchmark-$1"
}

doge download model openai/whisper-base --output_dir "$OUTPUT_DIR"
doge features --data_dir "$PROCESSED" --speech_encoder "$WHISPER" --encoder_window clip --dtype bf16

if [ ! -d "$OUTPUT_DIR/alone" ]; then
    if [ -d "$RUN" ]; then train --stages "$ALONE" --resume_from latest; else train --stages "$ALONE"; fi
    rm -rf "$OUTPUT_DIR/alone.partial"
    cp -r "$RUN/final" "$OUTPUT_DIR/alone.partial"
    mv "$OUTPUT_DIR/alone.partial" "$OUTPUT_DIR/alone"
fi
if [ ! -d "$OUTPUT_DIR/lora" ]; then
    train --stages "$ALONE" "$WITH_LORA" --resume_from latest --allow_config_change
    rm -rf "$OUTPUT_DIR/lora.partial"
    cp -r "$RUN/best" "$OUTPUT_DIR/lora.partial"
    mv "$OUTPUT_DIR/lora.partial" "$OUTPUT_DIR/lora"
fi
measure alone
measure lora
