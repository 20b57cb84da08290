#!/bin/bash
# `asr-doge transcribe` as a Slurm array: each task does one part of the shards. Tried with Slurm 22.05 on one machine.
#
#   sbatch --array=1-64 deploy/slurm.sh
#
# Submitted again, it goes on with a job that was stopped. Replace the paths, which all nodes must share, by yours.
#SBATCH --job-name=asr-doge
#SBATCH --ntasks=1
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --requeue
#SBATCH --output=asr-doge-%A-%a.log
set -eu
asr-doge transcribe /shared/corpus.json --model /shared/checkpoints/best --output_dir /shared/texts \
  --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" --batch_size 64 --dtype bf16 --decoders 6
