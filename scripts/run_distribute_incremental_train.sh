#!/bin/bash
# Train on from a checkpoint's weights, on several devices of one machine.
#
# usage: bash scripts/run_distribute_incremental_train.sh DATASET RANK_TABLE RANK_SIZE TYPE MODE PER_BATCH STRATEGY \
#            CKPT_PATH CKPT_NAME [flags of train.py]
#   DATASET     folder of MindRecord files
#   RANK_TABLE  rank table of all devices (python -m src.parallel.hccl_tools), or none
#   RANK_SIZE   ranks: a process and a device each
#   TYPE        fp32 or fp16: of the parameters
#   MODE        a size of configs/: tiny, 1.3B, 2.6B, 13B, 200B
#   PER_BATCH   sequences a step, for each data-parallel rank
#   STRATEGY    a release's strategy file, a run's folder strategy, or none: the checkpoint says itself
#   CKPT_PATH   folder of a release or of a .ckpt file, or a training run's output folder
#   CKPT_NAME   how the .ckpt files' names begin ('' where there are no others, or it is a training run's)
# Tensor parallel is min(8, RANK_SIZE) for the released sizes, 1 for others, or what --parallel.tensor says.
# Rank r's log is device{r}/log{r}.log; that of the machine's first rank is on the terminal too.
#
# In the environment: DEVICE_TARGET is Ascend (default), GPU or CPU.
. "$(dirname "$0")/common.sh"
[ $# -ge 9 ] || usage "bash scripts/run_distribute_incremental_train.sh DATASET RANK_TABLE RANK_SIZE TYPE MODE \
PER_BATCH STRATEGY CKPT_PATH CKPT_NAME [flags of train.py]"
checkpoint=$(weights "$7" "$8" "$9")
if [ "$7" = none ] && [ -n "$9" ]; then
    files=("$8/$9"*.ckpt)
    [ -f "${files[0]}" ] || fail "CKPT_NAME '$9': $8 holds no file $9*.ckpt"
    [ ${#files[@]} -eq 1 ] || fail "CKPT_NAME '$9': $8 holds ${#files[@]} files $9*.ckpt; give more of the name"
    checkpoint=${files[0]}
fi
launch_training "$1" "$2" "$3" "$4" "$5" 1 1 "$6" 0 "$3" --training.init_checkpoint "$checkpoint" "${@:10}"
