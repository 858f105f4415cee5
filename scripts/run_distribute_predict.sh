#!/bin/bash
# Continue texts on several devices of one machine; without --prompt or --prompt_file, prompts are asked for.
#
# usage: bash scripts/run_distribute_predict.sh RANK_SIZE RANK_TABLE STRATEGY TOKENIZER CKPT_PATH CKPT_NAME MODE TYPE \
#            [flags of predict.py]
#   RANK_SIZE   ranks: a process and a device each; the tensor-parallel parts, unless flags say otherwise
#   RANK_TABLE  rank table of all devices (python -m src.parallel.hccl_tools), or none
#   STRATEGY    a release's strategy file, a run's folder strategy, or none: the checkpoint says itself
#   TOKENIZER   folder of vocab.model
#   CKPT_PATH   folder of a release or of a .ckpt file, or a training run's output folder
#   CKPT_NAME   how the .ckpt files' names begin ('' where there are no others)
#   MODE        a size of configs/: tiny, 1.3B, 2.6B, 13B, 200B; '' where the checkpoint was trained here
#   TYPE        fp32 or fp16: of the parameters
#
# In the environment: DEVICE_TARGET is Ascend (default), GPU or CPU.
. "$(dirname "$0")/common.sh"
[ $# -ge 8 ] || usage "bash scripts/run_distribute_predict.sh RANK_SIZE RANK_TABLE STRATEGY TOKENIZER CKPT_PATH \
CKPT_NAME MODE TYPE [flags of predict.py]"
rank_size=$1 table=$2 tokenizer=$4 name=$6 mode=$7
check_counts RANK_SIZE "$rank_size"
dtype=$(dtype_of "$8")
checkpoint=$(weights "$3" "$5" "$name")
shift 8
launch "$rank_size" "$table" 0 "$rank_size" "$ROOT/predict.py" ${mode:+--mode "$mode"} \
    --data.tokenizer_path "$tokenizer" --checkpoint "$checkpoint" --checkpoint_name "$name" \
    --model.param_init_dtype "$dtype" --parallel.device_target "$DEVICE_TARGET" --parallel.world_size "$rank_size" \
    --parallel.tensor "$rank_size" "$@"
