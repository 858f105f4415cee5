#!/bin/bash
# Continue texts on one device. Without --prompt or --prompt_file it asks for prompts.
#
# usage: bash scripts/run_standalone_predict.sh STRATEGY TOKENIZER CKPT_PATH CKPT_NAME MODE [DEVICE_TARGET] [flags]
#   STRATEGY       a release's strategy file, the folder strategy of a run, or none if the checkpoint needs neither
#   TOKENIZER      folder with vocab.model
#   CKPT_PATH      folder of a release or a .ckpt file, or a training run's output folder
#   CKPT_NAME      first part of the .ckpt files' names; '' if the folder has no others
#   MODE           model size of configs/ (tiny, 350M, 1.3B, 2.6B, 13B, 200B, 60B-moe); '' if the checkpoint was trained here
#   DEVICE_TARGET  CPU (default), GPU or Ascend
. "$(dirname "$0")/common.sh"
[ $# -ge 5 ] || usage "bash scripts/run_standalone_predict.sh STRATEGY TOKENIZER CKPT_PATH CKPT_NAME MODE \
[DEVICE_TARGET] [flags of predict.py]"
tokenizer=$2 name=$4 mode=$5
checkpoint=$(weights "$1" "$3" "$name")
shift 5
device_target=CPU
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
    device_target=$1
    shift
fi
exec "$VENV_PYTHON" "$ROOT/predict.py" ${mode:+--mode "$mode"} --data.tokenizer_path "$tokenizer" \
    --checkpoint "$checkpoint" --checkpoint_name "$name" --parallel.device_target "$device_target" "$@"
