#!/bin/bash
# Continue training from the weights of a checkpoint, on several devices of one machine.
#
# usage: bash scripts/run_distribute_incremental_train.sh DATASET RANK_TABLE RANK_SIZE TYPE MODE PER_BATCH STRATEGY \
#            CKPT_PATH CKPT_NAME [flags of train.py]
#   DATASET     folder with MindRecord files
#   RANK_TABLE  rank table of all devices, made by python -m src.parallel.hccl_tools; or none
#   RANK_SIZE   number of ranks; a rank is one process with one device
#   TYPE        data type of the parameters: fp32 or fp16
#   MODE        model size of configs/: tiny, 350M, 1.3B, 2.6B, 13B, 200B, 60B-moe
#   PER_BATCH   sequences per step on each data-parallel rank
#   STRATEGY    a release's strategy file, the folder strategy of a run, or none if the checkpoint needs neither
#   CKPT_PATH   folder of a release or a .ckpt file, or a training run's output folder
#   CKPT_NAME   first part of the .ckpt files' names; '' if the folder has no others or is a training run's
# The tensor-parallel size is min(8, RANK_SIZE) for the released model sizes and 1 for others; --parallel.tensor
# overrides it.
# The log of rank r is device{r}/log{r}.log; the terminal also shows the log of this machine's first rank.
#
# Environment: DEVICE_TARGET is Ascend (default), GPU or CPU.
. "$(dirname "$0")/common.sh"
[ $# -ge 9 ] || usage "bash scripts/run_distribute_incremental_train.sh DATASET RANK_TABLE RANK_SIZE TYPE MODE \
PER_BATCH STRATEGY CKPT_PATH CKPT_NAME [flags of train.py]"
checkpoint=$(weights "$7" "$8" "$9")
if [ "$7" = none ] && [ -n "$9" ]; then
    files=("$8/$9"*.ckpt)
    [ -f "${files[0]}" ] || fail "CKPT_NAME '$9': $8 has no file $9*.ckpt"
    [ ${#files[@]} -eq 1 ] || fail "CKPT_NAME '$9': $8 has ${#files[@]} files $9*.ckpt; give a longer part of the name"
    checkpoint=${files[0]}
fi
launch_training "$1" "$2" "$3" "$4" "$5" 1 1 "$6" 0 "$3" --training.init_checkpoint "$checkpoint" "${@:10}"
