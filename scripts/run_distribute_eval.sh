#!/bin/bash
# Score a checkpoint on a benchmark on several devices of one machine.
#
# usage: bash scripts/run_distribute_eval.sh RANK_SIZE RANK_TABLE STRATEGY TOKENIZER CKPT_PATH MODE TYPE TASK TASK_PATH \
#            [flags of eval.py]
#   RANK_SIZE   number of ranks, one process with one device each; also the tensor-parallel size, unless a flag sets it
#   RANK_TABLE  rank table of all devices, made by python -m src.parallel.hccl_tools; or none
#   STRATEGY    a release's strategy file, the folder strategy of a run, or none if the checkpoint needs neither
#   TOKENIZER   folder with vocab.model
#   CKPT_PATH   folder of a release or a .ckpt file (--checkpoint_name chooses one), or a training run's output folder
#   MODE        model size of configs/ (tiny, 350M, 1.3B, 2.6B, 13B, 200B, 60B-moe); '' if the checkpoint was trained here
#   TYPE        data type of the parameters: fp32 or fp16
#   TASK        c3, cmrc2018, tnews, ... (eval.py --help)
#   TASK_PATH   folder with the benchmark's published files
#
# Environment: DEVICE_TARGET is Ascend (default), GPU or CPU.
. "$(dirname "$0")/common.sh"
[ $# -ge 9 ] || usage "bash scripts/run_distribute_eval.sh RANK_SIZE RANK_TABLE STRATEGY TOKENIZER CKPT_PATH MODE TYPE \
TASK TASK_PATH [flags of eval.py]"
rank_size=$1 table=$2 tokenizer=$4 mode=$6 task=$8 task_path=$9
check_counts RANK_SIZE "$rank_size"
dtype=$(dtype_of "$7")
checkpoint=$(weights "$3" "$5" "")
shift 9
launch "$rank_size" "$table" 0 "$rank_size" "$ROOT/eval.py" ${mode:+--mode "$mode"} \
    --data.tokenizer_path "$tokenizer" --checkpoint "$checkpoint" --model.param_init_dtype "$dtype" \
    --parallel.device_target "$DEVICE_TARGET" --parallel.world_size "$rank_size" --parallel.tensor "$rank_size" \
    --task "$task" --task_path "$task_path" "$@"
