#!/bin/bash
# Export a checkpoint to MindIR on several devices of one machine. Rank R writes its slice to the folder deviceR.
#
# usage: bash scripts/run_distribute_export.sh STRATEGY CKPT_DIR [flags of export.py]
#   STRATEGY  a release's strategy file, the folder strategy of a run, or none if the checkpoint needs neither
#   CKPT_DIR  folder of a release or a .ckpt file, or a training run's output folder
#
# Environment: MODE is a model size of configs/ (default 13B; '' if the checkpoint was trained here), RANK_SIZE the
# number of devices (default 8), RANK_TABLE their rank table (default none), DEVICE_TARGET Ascend (default), GPU or CPU.
. "$(dirname "$0")/common.sh"
[ $# -ge 2 ] || usage "bash scripts/run_distribute_export.sh STRATEGY CKPT_DIR [flags of export.py]"
RANK_SIZE=${RANK_SIZE:-8}
launch_export "$1" "$2" "${RANK_TABLE:-none}" "$RANK_SIZE" 0 "$RANK_SIZE" "${@:3}"
