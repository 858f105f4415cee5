#!/bin/bash
# Continue texts on one device; without --prompt or --prompt_file, prompts are asked for.
#
# usage: bash scripts/run_standalone_predict.sh STRATEGY TOKENIZER CKPT_PATH CKPT_NAME MODE [DEVICE_TARGET] [flags]
#   STRATEGY       none: the checkpoint is one whole file
#   TOKENIZER      folder of vocab.model
#   CKPT_PATH      folder of the .ckpt file, or a training run's output folder
#   CKPT_NAME      how the .ckpt file's name begins ('' where the folder holds only one)
#   MODE           a size of configs/: tiny, 1.3B, 2.6B, 13B, 200B; '' where the checkpoint was trained here
#   DEVICE_TARGET  CPU (default), GPU or Ascend
. "$(dirname "$0")/common.sh"
[ $# -ge 5 ] || usage "bash scripts/run_standalone_predict.sh STRATEGY TOKENIZER CKPT_PATH CKPT_NAME MODE \
[DEVICE_TARGET] [flags of predict.py]"
check_strategy "$1"
tokenizer=$2 checkpoint=$3 name=$4 mode=$5
shift 5
device_target=CPU
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
    device_target=$1
    shift
fi
exec "$VENV_PYTHON" "$ROOT/predict.py" ${mode:+--mode "$mode"} --data.tokenizer_path "$tokenizer" \
    --checkpoint "$checkpoint" --checkpoint_name "$name" --parallel.device_target "$device_target" "$@"
