#!/bin/bash
# Continue texts on several devices of one machine. Without --prompt or --prompt_file it asks for prompts.
#
# usage: bash scripts/run_distribute_predict.sh RANK_SIZE RANK_TABLE STRATEGY TOKENIZER CKPT_PATH CKPT_NAME MODE TYPE \
#            [flags of predict.py]
#   RANK_SIZE   number of ranks, one process with one device each; also the tensor-parallel size, unless a flag sets it
#   RANK_TABLE  rank table of all devices, made by python -m src.parallel.hccl_tools; or none
#   STRATEGY    a release's strategy file, the folder strategy of a run, or none if the checkpoint needs neither
#   TOKENIZER   folder with vocab.model
#   CKPT_PATH   folder of a release or a .ckpt file, or a training run's output folder
#   CKPT_NAME   first part of the .ckpt files' names; '' if the folder has no others
#   MODE        model size of configs/ (tiny, 350M, 1.3B, 2.6B, 13B, 200B, 60B-moe); '' if the checkpoint was trained here
#   TYPE        data type of the parameters: fp32 or fp16
#
# Environment: DEVICE_TARGET is Ascend (default), GPU or CPU.
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
