#!/bin/bash
# Export a checkpoint to MindIR, on one device, into device0; log in device0/log0.log.
#
# usage: bash scripts/run_standalone_export.sh STRATEGY CKPT_DIR MODE DEVICE_TARGET [TASK] [flags of export.py]
#   STRATEGY       a release's strategy file, a run's folder strategy, or none: the checkpoint says itself
#   CKPT_DIR       folder of a release or of a .ckpt file, or a training run's output folder
#   MODE           a size of configs/: tiny, 1.3B, 2.6B, 13B, 200B; '' where the checkpoint was trained here
#   DEVICE_TARGET  CPU, GPU or Ascend
#   TASK           c3: also export the graphs that score given texts, for evaluation through a server
. "$(dirname "$0")/common.sh"
[ $# -ge 4 ] || usage "bash scripts/run_standalone_export.sh STRATEGY CKPT_DIR MODE DEVICE_TARGET [TASK] [flags of \
export.py]"
checkpoint=$(weights "$1" "$2" "")
mode=$3 device_target=$4
shift 4
task=
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
    task=$1
    shift
fi
logged 0 "$VENV_PYTHON" "$ROOT/export.py" ${mode:+--mode "$mode"} --checkpoint "$checkpoint" --output device0 \
    --parallel.device_target "$device_target" ${task:+--task "$task"} "$@"
