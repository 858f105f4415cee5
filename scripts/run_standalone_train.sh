#!/bin/bash
# Train on one device.
#
# usage: bash scripts/run_standalone_train.sh DATASET TYPE MODE PER_BATCH [DEVICE_TARGET] [flags of train.py]
#   DATASET        folder with MindRecord files
#   TYPE           data type of the parameters: fp32 or fp16
#   MODE           model size of configs/: tiny, 350M, 1.3B, 2.6B, 13B, 200B, 60B-moe
#   PER_BATCH      sequences per step
#   DEVICE_TARGET  CPU (default), GPU or Ascend
. "$(dirname "$0")/common.sh"
[ $# -ge 4 ] || usage "bash scripts/run_standalone_train.sh DATASET TYPE MODE PER_BATCH [DEVICE_TARGET] \
[flags of train.py]"
dtype=$(dtype_of "$2")
dataset=$1 mode=$3 per_batch=$4
shift 4
device_target=CPU
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
    device_target=$1
    shift
fi
logged 0 "$VENV_PYTHON" "$ROOT/train.py" --mode "$mode" --data.train "$dataset" --model.param_init_dtype "$dtype" \
    --training.batch_size "$per_batch" --parallel.device_target "$device_target" "$@"
