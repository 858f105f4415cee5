#!/bin/bash
# Train on several devices, of one machine or of several, through mpirun (Open MPI).
#
# usage: bash scripts/run_distribute_train_gpu.sh RANK_SIZE HOSTFILE DATASET PER_BATCH MODE [flags of train.py]
#   RANK_SIZE  ranks on all machines: a process and a device each
#   HOSTFILE   Open MPI's file of machines, lines such as `10.0.0.1 slots=8`; none for this machine alone
#   DATASET    folder of MindRecord files
#   PER_BATCH  sequences a step, for each data-parallel rank
#   MODE       a size of configs/: tiny, 1.3B, 2.6B, 13B, 200B
# Tensor parallel is min(8, RANK_SIZE) for the released sizes, 1 for others, or what --parallel.tensor says.
# Rank r's log is device{r}/log{r}.log, on its machine; rank 0's is on the terminal too.
#
# In the environment: DEVICE_TARGET is GPU (default) or CPU; NCCL_* is handed on.
DEVICE_TARGET=${DEVICE_TARGET:-GPU}
. "$(dirname "$0")/common.sh"
[ $# -ge 5 ] || usage "bash scripts/run_distribute_train_gpu.sh RANK_SIZE HOSTFILE DATASET PER_BATCH MODE \
[flags of train.py]"
rank_size=$1 hostfile=$2 dataset=$3 per_batch=$4 mode=$5
shift 5
check_counts RANK_SIZE "$rank_size" PER_BATCH "$per_batch"
first_host=127.0.0.1
if [ "$hostfile" != none ]; then
    [ -f "$hostfile" ] || fail "HOSTFILE '$hostfile' is not there; lines such as \`10.0.0.1 slots=8\`, or none"
    first_host=$(awk '!/^[[:space:]]*(#|$)/ {print $1; exit}' "$hostfile")
fi
command -v mpirun > /dev/null || fail "mpirun is not installed (Debian: apt-get install openmpi-bin); \
scripts/run_distribute_train.sh starts ranks without it"
tensor=$(tensor_parallel "$mode" "$rank_size" "$@")
port=$("$VENV_PYTHON" -c 'from src.parallel.launch.launcher import free_port; print(free_port())')
handed_on=()
for name in $(compgen -e | grep -E '^(PATH|LD_LIBRARY_PATH|PYTHONPATH|GLOG_v|NCCL_.*)$'); do
    handed_on+=(-x "$name")
done
options=(-n "$rank_size")
[ "$hostfile" = none ] || options+=(--hostfile "$hostfile")
[ "$DEVICE_TARGET" != CPU ] || options+=(--oversubscribe)  # ranks may be more than the cores
# When the run stops or fails, mpirun leaves the ranks so many seconds to save and to end.
exec mpirun --allow-run-as-root --mca odls_base_sigkill_timeout 10 "${handed_on[@]}" "${options[@]}" \
    "$VENV_PYTHON" -m src.parallel.launch --mpirun --rank_size "$rank_size" --device_target "$DEVICE_TARGET" \
    --scheduler_address "$first_host" --scheduler_port "$port" \
    -- "$ROOT/train.py" --mode "$mode" --data.train "$dataset" --training.batch_size "$per_batch" \
    --parallel.device_target "$DEVICE_TARGET" --parallel.world_size "$rank_size" --parallel.tensor "$tensor" "$@"
