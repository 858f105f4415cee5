#!/bin/bash
# Score a checkpoint on a benchmark on one device. The output goes to the terminal and to device0/log0.log.
#
# usage: bash scripts/run_standalone_eval.sh STRATEGY TOKENIZER CKPT_PATH CKPT_NAME MODE DEVICE_TARGET TASK TASK_PATH \
#            [flags of eval.py]
#   STRATEGY       a release's strategy file, the folder strategy of a run, or none if the checkpoint needs neither
#   TOKENIZER      folder with vocab.model
#   CKPT_PATH      folder of a release or a .ckpt file, or a training run's output folder
#   CKPT_NAME      first part of the .ckpt files' names; '' if the folder has no others
#   MODE           model size of configs/ (tiny, 350M, 1.3B, 2.6B, 13B, 200B, 60B-moe); '' if the checkpoint was trained here
#   DEVICE_TARGET  CPU, GPU or Ascend
#   TASK           c3, cmrc2018, tnews, ... (eval.py --help)
#   TASK_PATH      folder with the benchmark's published files
. "$(dirname "$0")/common.sh"
[ $# -ge 8 ] || usage "bash scripts/run_standalone_eval.sh STRATEGY TOKENIZER CKPT_PATH CKPT_NAME MODE DEVICE_TARGET \
TASK TASK_PATH [flags of eval.py]"
tokenizer=$2 name=$4 mode=$5 device_target=$6 task=$7 task_path=$8
checkpoint=$(weights "$1" "$3" "$name")
shift 8
logged 0 "$VENV_PYTHON" "$ROOT/eval.py" ${mode:+--mode "$mode"} --data.tokenizer_path "$tokenizer" \
    --checkpoint "$checkpoint" --checkpoint_name "$name" --parallel.device_target "$device_target" --task "$task" \
    --task_path "$task_path" "$@"
