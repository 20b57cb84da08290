#!/bin/sh
# Whisper base and a frozen language model, from nothing to a table: does an adapter alone learn to speak to it?
#
#   scripts/real_weights.sh ./processed gemma-3-270m-q4_k_m.gguf ./real_weights
#
# Promises: PROCESSED holds train_manifest.json, dev_manifest.json and test_manifest.json, from `asr-doge process`
# (speechocean762 and ljspeech, joined); LANGUAGE_MODEL is a folder, a hub id or a .gguf file. Every stage takes up where
# it was interrupted, so run it again after any failure; everything it makes is in OUTPUT_DIR. First the adapter alone,
# warmed up by CTC, then LoRA beside it; the last lines are ours, Whisper's own decoder and pocketsphinx on the same clips
# in the same run. Hours on two cores: EPOCHS (default 4).
set -eu

PROCESSED=${1:?folder of manifests}
LANGUAGE_MODEL=${2:?language model}
OUTPUT_DIR=${3:-./real_weights}
EPOCHS=${EPOCHS:-4}
PYTHON=${PYTHON:-python}
WHISPER=$OUTPUT_DIR/whisper-base
FEATURES=$OUTPUT_DIR/features

doge() { "$PYTHON" -m asr_doge "$@"; }

doge download model openai/whisper-base --output_dir "$OUTPUT_DIR"
doge features --data_dir "$PROCESSED" --speech_encoder "$WHISPER" --encoder_window clip --dtype bf16 \
    --output_dir "$FEATURES"

for STAGE in none lora; do
    RESUME=
    [ -f "$OUTPUT_DIR/$STAGE/run.json" ] && RESUME="--resume_from latest"
    # shellcheck disable=SC2086 # two words or none
    doge train --data_dir "$PROCESSED" --features_dir "$FEATURES" --output_dir "$OUTPUT_DIR/$STAGE" \
        --speech_encoder "$WHISPER" --encoder_window clip --language_model "$LANGUAGE_MODEL" \
        --adapter_stack 5 --adapter_output_norm --warm_up ctc --train_language_model "$STAGE" --lora_rank 16 \
        --batch_seconds 80 --learning_rate 1e-3 --epochs "$EPOCHS" --patience 5 --no_wandb $RESUME
    doge benchmark --checkpoint_dir "$OUTPUT_DIR/$STAGE/best" --data_dir "$PROCESSED" \
        --peer pocketsphinx "hf:$WHISPER" --output_dir "$OUTPUT_DIR/benchmark-$STAGE"
done
