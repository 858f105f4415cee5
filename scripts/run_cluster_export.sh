#!/bin/bash
# Export a checkpoint to MindIR on several machines; run it on each. Rank R writes its slice to the folder deviceR.
#
# usage: bash scripts/run_cluster_export.sh STRATEGY CKPT_DIR RANK_TABLE RANK_SIZE RANK_START [flags of export.py]
#   STRATEGY    a release's strategy file, the folder strategy of a run, or none if the checkpoint needs neither
#   CKPT_DIR    folder of a release or a .ckpt file, or a training run's output folder; needed on each machine
#   RANK_TABLE  rank table of all devices, made by python -m src.parallel.hccl_tools; or none
#   RANK_SIZE   number of devices on all machines
#   RANK_START  first rank of this machine: 0, 8, 16, ...
#
# Environment: MODE is a model size of configs/ (default 200B; '' if the checkpoint was trained here). LOCAL_DEVICE_NUM
# is the number of devices on this machine (default: the smaller of 8 and RANK_SIZE). DEVICE_TARGET is Ascend (default),
# GPU or CPU. A run without a rank table needs MS_SCHED_HOST, the address of the machine of rank 0; MS_SCHED_PORT
# chooses the port.
. "$(dirname "$0")/common.sh"
[ $# -ge 5 ] || usage "bash scripts/run_cluster_export.sh STRATEGY CKPT_DIR RANK_TABLE RANK_SIZE RANK_START [flags of \
export.py]"
MODE=${MODE-200B}
launch_export "$1" "$2" "$3" "$4" "$5" "${LOCAL_DEVICE_NUM:-$(($4 < 8 ? $4 : 8))}" "${@:6}"
