#!/bin/bash
# Train a mixture of experts on several devices. The optimizer's moments and their update are on the host (CPU).
#
# usage: bash scripts/run_distribute_train_moe_host_device.sh DATASET RANK_TABLE RANK_SIZE TYPE MODE STAGE_NUM \
#            MICRO_SIZE PER_BATCH RANK_START LOCAL_DEVICE_NUM EXPERT_NUM_PER_EP ENABLE_ALLTOALL [flags of train.py]
#   DATASET            folder with MindRecord files
#   RANK_TABLE         rank table of all devices, made by python -m src.parallel.hccl_tools; or none
#   RANK_SIZE          number of ranks on all machines; a rank is one process with one device
#   TYPE               data type of the parameters: fp32. The update on the host takes no fp16
#   MODE               model size of configs/: tiny, 350M, 1.3B, 2.6B, 13B, 200B, 60B-moe
#   STAGE_NUM          number of pipeline stages
#   MICRO_SIZE         micro-batches per step, at least STAGE_NUM
#   PER_BATCH          sequences per micro-batch on each data-parallel rank
#   RANK_START         first rank of this machine
#   LOCAL_DEVICE_NUM   number of ranks on this machine
#   EXPERT_NUM_PER_EP  experts per layer in each expert-parallel part
#   ENABLE_ALLTOALL    1: each data-parallel rank holds experts of its own (all-to-all); 0: each holds all experts
# Every layer has experts, unless --model.expert_interval says otherwise.
# The tensor-parallel size is min(8, RANK_SIZE / STAGE_NUM) for the released model sizes and 1 for others;
# --parallel.tensor overrides it.
# The log of rank r is device{r}/log{r}.log; the terminal also shows the log of this machine's first rank.
#
# Environment: DEVICE_TARGET is Ascend (default), GPU or CPU. A run on several machines without a rank table needs
# MS_SCHED_HOST, the address of the machine of rank 0; MS_SCHED_PORT chooses the port.
. "$(dirname "$0")/common.sh"
[ $# -ge 12 ] || usage "bash scripts/run_distribute_train_moe_host_device.sh DATASET RANK_TABLE RANK_SIZE TYPE MODE \
STAGE_NUM MICRO_SIZE PER_BATCH RANK_START LOCAL_DEVICE_NUM EXPERT_NUM_PER_EP ENABLE_ALLTOALL [flags of train.py]"
launch_moe_training "${@:1:12}" --parallel.optimizer_offload true "${@:13}"
