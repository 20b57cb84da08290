#!/bin/sh
# From nothing to a table of results: download if absent, process, features, train, benchmark.
#
#   scripts/reproduce.sh ./data                                      what the published code did, on LibriSpeech
#   scripts/reproduce.sh --config configs/nano.yaml ./fsdd           the same script, small: nano on digit strings
#   ENCODER=nano/encoder LANGUAGE_MODEL=nano/language_model scripts/reproduce.sh ./fsdd    the same recipe, nano's parts
#
# Promises: every stage takes up where it was interrupted, so run it again after any failure; everything it makes is in
# OUTPUT_DIR (default ./reproduction). DATA_DIR is the folder of the corpus; with a Free Spoken Digit Dataset in it
# (recordings/*.wav), strings are made of the digits, COUNT of them for each speaker (default 400; at least 80, or there
# are too few steps for the published schedule). ENCODER and LANGUAGE_MODEL take the place of the parts that the
# configuration names.
set -eu

CONFIG=configs/published.yaml
if [ "${1:-}" = --config ]; then
    CONFIG=${2:?--config needs a file}
    shift 2
fi
DATA_DIR=${1:-./data}
OUTPUT_DIR=${2:-./reproduction}
COUNT=${COUNT:-400}
PYTHON=${PYTHON:-python}
PROCESSED=$OUTPUT_DIR/processed
CHECKPOINTS=$OUTPUT_DIR/checkpoints

doge() {
    echo "\$ asr-doge $*"
    "$PYTHON" -m asr_doge "$@"
}

strings() { # SPLIT COUNT SEED, then which speakers and takes
    split=$1 count=$2 seed=$3
    shift 3
    [ -f "$OUTPUT_DIR/strings/$split.jsonl" ] || "$PYTHON" scripts/make_digit_strings.py --digits_dir "$DATA_DIR" \
        --output_dir "$OUTPUT_DIR/strings" --split "$split" --count "$count" --seed "$seed" "$@"
}

if [ -d "$DATA_DIR/recordings" ]; then
    strings train "$COUNT" 0 --takes train --without lucas
    strings dev $((COUNT / 4)) 1 --speakers lucas
    strings test $((COUNT / 4)) 2 --takes test
    set -- --data_dir "$OUTPUT_DIR/strings" --dataset manifest --min_duration 0.3 \
        --train_split train --dev_split dev --test_split test
else
    doge download librispeech --output_dir "$DATA_DIR"
    set -- --data_dir "$DATA_DIR"
fi

[ -f "$PROCESSED/test_manifest.json" ] || doge process --config "$CONFIG" "$@" --output_dir "$PROCESSED"
set -- ${ENCODER:+--speech_encoder "$ENCODER"}
doge features --config "$CONFIG" --data_dir "$PROCESSED" --output_dir "$PROCESSED/features" "$@"

set -- "$@" ${LANGUAGE_MODEL:+--language_model "$LANGUAGE_MODEL"} --config "$CONFIG" --data_dir "$PROCESSED" --features_dir "$PROCESSED/features" --output_dir "$CHECKPOINTS"
if [ ! -f "$CHECKPOINTS/run.json" ]; then
    doge train "$@"
elif ! grep -q '"result"' "$CHECKPOINTS/run.json"; then
    doge train "$@" --resume_from latest
fi
mkdir -p "$OUTPUT_DIR/benchmark"
if [ -z "$(find "$OUTPUT_DIR/benchmark" -name 'benchmark_*.json' -newer "$CHECKPOINTS/run.json")" ]; then
    doge benchmark --config "$CONFIG" --checkpoint_dir "$CHECKPOINTS/best" --data_dir "$PROCESSED" \
        --output_dir "$OUTPUT_DIR/benchmark"
fi

"$PYTHON" - "$OUTPUT_DIR/benchmark" <<'PYTHON'
import json
import sys
from pathlib import Path

report = json.loads(max(Path(sys.argv[1]).glob("benchmark_*.json")).read_text(encoding="utf-8"))
here, speed, counts = report["accuracy"], report["speed"], report["parameters"]
rows = (
    ("WER %", f"{100 * here['wer']:.2f}", "4.70"),
    ("CER %", f"{100 * here['cer']:.2f}", "2.75"),
    ("exact match %", f"{100 * here['perfect_match_rate']:.1f}", "46.0"),
    ("real-time factor", f"{speed['real_time_factor']:.3f}", "0.91"),
    ("trainable parameters", f"{counts['trainable']:,}", "1,574,400"),
    ("utterances", f"{here['num_samples']:,}", "200"),
)
print(f"{'':22}{'here':>12}{'published':>12}")
for name, *values in rows:
    print(f"{name:22}" + "".join(f"{value:>12}" for value in values))
print("(published: Granite Speech 3.3-2B and Doge-320M, all of which its code trained, on LibriSpeech test-clean)")
PYTHON
