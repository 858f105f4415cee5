#!/bin/bash
# Train on several devices; MindSpore's compiler searches how to spread the model over them, instead of a plan.
#
# usage: bash scripts/run_distribute_train_auto_parallel.sh DATASET RANK_TABLE RANK_SIZE TYPE MODE PER_BATCH RANK_START \
#            LOCAL_DEVICE_NUM [flags of train.py]
#   DATASET            folder of MindRecord files
#   RANK_TABLE         rank table of all devices (python -m src.parallel.hccl_tools), or none
#   RANK_SIZE          ranks on all machines: a process and a device each
#   TYPE               fp32 or fp16: of the parameters
#   MODE               a size of configs/: tiny, 1.3B, 2.6B, 13B, 200B
#   PER_BATCH          sequences a step that each rank reads
#   RANK_START         first rank of this machine
#   LOCAL_DEVICE_NUM   ranks of this machine
# Rank r's log is device{r}/log{r}.log; that of the machine's first rank is on the terminal too. What was found is in the
# run's folder strategy. To see it without devices: python train.py --dry_run --parallel.strategy_search.
#
# In the environment: DEVICE_TARGET is Ascend (default) or GPU; without a rank table, several machines need
# MS_SCHED_HOST, the address of the machine of rank 0, and may choose its port, MS_SCHED_PORT.
. "$(dirname "$0")/common.sh"
[ $# -ge 8 ] || usage "bash scripts/run_distribute_train_auto_parallel.sh DATASET RANK_TABLE RANK_SIZE TYPE MODE \
PER_BATCH RANK_START LOCAL_DEVICE_NUM [flags of train.py]"
launch_training "$1" "$2" "$3" "$4" "$5" 1 1 "$6" "$7" "$8" --parallel.tensor 1 --parallel.strategy_search true "${@:9}"
