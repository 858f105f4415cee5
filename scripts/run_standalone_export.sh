#!/bin/bash
# Export a checkpoint to MindIR on one device, to the folder device0; device_0 leads there. The log is device0/log0.log.
#
# usage: bash scripts/run_standalone_export.sh STRATEGY CKPT_DIR MODE DEVICE_TARGET [TASK] [flags of export.py]
#   STRATEGY       a release's strategy file, the folder strategy of a run, or none if the checkpoint needs neither
#   CKPT_DIR       folder of a release or a .ckpt file, or a training run's output folder
#   MODE           model size of configs/ (tiny, 350M, 1.3B, 2.6B, 13B, 200B, 60B-moe); '' if the checkpoint was trained here
#   DEVICE_TARGET  CPU, GPU or Ascend
#   TASK           name of a benchmark such as c3: also export the graphs that score texts, to evaluate by a server
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
link_old_names 0 1
logged 0 "$VENV_PYTHON" "$ROOT/export.py" ${mode:+--mode "$mode"} --checkpoint "$checkpoint" --output device0 \
    --parallel.device_target "$device_target" ${task:+--task "$task"} "$@"
