#!/bin/bash
# Train a mixture of experts on several devices.
#
# usage: bash scripts/run_distribute_train_moe.sh DATASET RANK_TABLE RANK_SIZE TYPE MODE STAGE_NUM MICRO_SIZE \
#            PER_BATCH RANK_START LOCAL_DEVICE_NUM EXPERT_NUM_PER_EP ENABLE_ALLTOALL [flags of train.py]
#   DATASET            folder of MindRecord files
#   RANK_TABLE         rank table of all devices (python -m src.parallel.hccl_tools), or none
#   RANK_SIZE          ranks on all machines: a process and a device each
#   TYPE               fp32 or fp16: of the parameters
#   MODE               a size of configs/: tiny, 1.3B, 2.6B, 13B, 200B
#   STAGE_NUM          pipeline stages
#   MICRO_SIZE         micro-batches a step; STAGE_NUM or more
#   PER_BATCH          sequences a micro-batch, for each data-parallel rank
#   RANK_START         first rank of this machine
#   LOCAL_DEVICE_NUM   ranks of this machine
#   EXPERT_NUM_PER_EP  experts of a layer in each expert-parallel part
#   ENABLE_ALLTOALL    1: each data-parallel rank is a part, with experts of its own; 0: one part, each has all of them
# Every layer has experts (--model.expert_interval changes it).
# Tensor parallel is min(8, RANK_SIZE / STAGE_NUM) for the released sizes, 1 for others, or what --parallel.tensor says.
# Rank r's log is device{r}/log{r}.log; that of the machine's first rank is on the terminal too.
#
# In the environment: DEVICE_TARGET is Ascend (default), GPU or CPU; without a rank table, several machines need
# MS_SCHED_HOST, the address of the machine of rank 0, and may choose its port, MS_SCHED_PORT.
. "$(dirname "$0")/common.sh"
[ $# -ge 12 ] || usage "bash scripts/run_distribute_train_moe.sh DATASET RANK_TABLE RANK_SIZE TYPE MODE STAGE_NUM \
MICRO_SIZE PER_BATCH RANK_START LOCAL_DEVICE_NUM EXPERT_NUM_PER_EP ENABLE_ALLTOALL [flags of train.py]"
launch_moe_training "$@"
