#!/bin/bash
# Continue texts on one device; without --prompt or --prompt_file, prompts are asked for.
#
# usage: bash scripts/run_standalone_predict.sh STRATEGY TOKENIZER CKPT_PATH CKPT_NAME MODE [DEVICE_TARGET] [flags]
#   STRATEGY       a release's strategy file, a run's folder strategy, or none: the checkpoint says itself
#   TOKENIZER      folder of vocab.model
#   CKPT_PATH      folder of a release or of a .ckpt file, or a training run's output folder
#   CKPT_NAME      how the .ckpt files' names begin ('' where there are no others)
#   MODE           a size of configs/: tiny, 1.3B, 2.6B, 13B, 200B; '' where the checkpoint was trained here
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
