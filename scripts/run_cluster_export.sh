#!/bin/bash
# Export a checkpoint to MindIR, on this one of several machines: rank R's slice of it into deviceR.
#
# usage: bash scripts/run_cluster_export.sh STRATEGY CKPT_DIR RANK_TABLE RANK_SIZE RANK_START [flags of export.py]
#   STRATEGY    a release's strategy file, a run's folder strategy, or none: the checkpoint says itself
#   CKPT_DIR    folder of a release or of a .ckpt file, or a training run's output folder; on each machine
#   RANK_TABLE  rank table of all devices (python -m src.parallel.hccl_tools), or none
#   RANK_SIZE   devices of all machines
#   RANK_START  this machine's first rank: 0, 8, 16, ...
#
# In the environment: MODE is a size of configs/ (13B; '' where the checkpoint was trained here), LOCAL_DEVICE_NUM the
# devices of this machine (8, or what there are), DEVICE_TARGET Ascend (default), GPU or CPU. Without a table the
# machines meet at MS_SCHED_HOST (and MS_SCHED_PORT).
. "$(dirname "$0")/common.sh"
[ $# -ge 5 ] || usage "bash scripts/run_cluster_export.sh STRATEGY CKPT_DIR RANK_TABLE RANK_SIZE RANK_START [flags of \
export.py]"
launch_export "$1" "$2" "$3" "$4" "$5" "${LOCAL_DEVICE_NUM:-$(($4 < 8 ? $4 : 8))}" "${@:6}"
