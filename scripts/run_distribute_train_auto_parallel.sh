#!/bin/bash
# Train on several devices. MindSpore's compiler searches for the parallel strategy; there is no plan.
#
# usage: bash scripts/run_distribute_train_auto_parallel.sh DATASET RANK_TABLE RANK_SIZE TYPE MODE PER_BATCH RANK_START \
#            LOCAL_DEVICE_NUM [flags of train.py]
#   DATASET            folder with MindRecord files
#   RANK_TABLE         rank table of all devices, made by python -m src.parallel.hccl_tools; or none
#   RANK_SIZE          number of ranks on all machines; a rank is one process with one device
#   TYPE               data type of the parameters: fp32 or fp16
#   MODE               model size of configs/: tiny, 350M, 1.3B, 2.6B, 13B, 200B, 60B-moe
#   PER_BATCH          sequences per step that each rank reads
#   RANK_START         first rank of this machine
#   LOCAL_DEVICE_NUM   number of ranks on this machine
# The log of rank r is device{r}/log{r}.log; the terminal also shows the log of this machine's first rank. The strategy
# that the compiler found is in the run's folder strategy. `python train.py --dry_run --parallel.strategy_search` shows
# it without devices.
#
# Environment: DEVICE_TARGET is Ascend (default) or GPU. A run on several machines without a rank table needs
# MS_SCHED_HOST, the address of the machine of rank 0; MS_SCHED_PORT chooses the port.
. "$(dirname "$0")/common.sh"
[ $# -ge 8 ] || usage "bash scripts/run_distribute_train_auto_parallel.sh DATASET RANK_TABLE RANK_SIZE TYPE MODE \
PER_BATCH RANK_START LOCAL_DEVICE_NUM [flags of train.py]"
launch_training "$1" "$2" "$3" "$4" "$5" 1 1 "$6" "$7" "$8" --parallel.tensor 1 --parallel.strategy_search true "${@:9}"
