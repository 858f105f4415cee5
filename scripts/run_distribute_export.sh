#!/bin/bash
# Export a checkpoint to MindIR, on several devices of one machine: rank R's slice of it into deviceR.
#
# usage: bash scripts/run_distribute_export.sh STRATEGY CKPT_DIR [flags of export.py]
#   STRATEGY  a release's strategy file, a run's folder strategy, or none: the checkpoint says itself
#   CKPT_DIR  folder of a release or of a .ckpt file, or a training run's output folder
#
# In the environment: MODE is a size of configs/ (13B; '' where the checkpoint was trained here), RANK_SIZE the number of
# devices (8), RANK_TABLE their table (none), DEVICE_TARGET Ascend (default), GPU or CPU.
. "$(dirname "$0")/common.sh"
[ $# -ge 2 ] || usage "bash scripts/run_distribute_export.sh STRATEGY CKPT_DIR [flags of export.py]"
RANK_SIZE=${RANK_SIZE:-8}
launch_export "$1" "$2" "${RANK_TABLE:-none}" "$RANK_SIZE" 0 "$RANK_SIZE" "${@:3}"
