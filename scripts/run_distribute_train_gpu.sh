#!/bin/bash
# Train on several devices of one or more machines, started by mpirun (Open MPI).
#
# usage: bash scripts/run_distribute_train_gpu.sh RANK_SIZE HOSTFILE DATASET PER_BATCH MODE [flags of train.py]
#   RANK_SIZE  number of ranks on all machines; a rank is one process with one device
#   HOSTFILE   Open MPI's list of machines, with lines such as `10.0.0.1 slots=8`; none for this machine only
#   DATASET    folder with MindRecord files
#   PER_BATCH  sequences per step on each data-parallel rank
#   MODE       model size of configs/: tiny, 350M, 1.3B, 2.6B, 13B, 200B, 60B-moe
# The tensor-parallel size is min(8, RANK_SIZE) for the released model sizes and 1 for others; --parallel.tensor
# overrides it.
# The log of rank r is device{r}/log{r}.log on its machine; the terminal also shows the log of rank 0.
#
# Environment: DEVICE_TARGET is GPU (default) or CPU. Variables NCCL_* are passed on to the ranks.
DEVICE_TARGET=${DEVICE_TARGET:-GPU}
. "$(dirname "$0")/common.sh"
[ $# -ge 5 ] || usage "bash scripts/run_distribute_train_gpu.sh RANK_SIZE HOSTFILE DATASET PER_BATCH MODE \
[flags of train.py]"
rank_size=$1 hostfile=$2 dataset=$3 per_batch=$4 mode=$5
shift 5
check_counts RANK_SIZE "$rank_size" PER_BATCH "$per_batch"
first_host=127.0.0.1
if [ "$hostfile" != none ]; then
    [ -f "$hostfile" ] || fail "HOSTFILE '$hostfile' does not exist; give a file with lines such as \`10.0.0.1 \
slots=8\`, or none"
    first_host=$(awk '!/^[[:space:]]*(#|$)/ {print $1; exit}' "$hostfile")
fi
tensor=$(tensor_parallel "$mode" "$rank_size" "$@")
training=("$ROOT/train.py" --mode "$mode" --data.train "$dataset" --training.batch_size "$per_batch"
    --parallel.device_target "$DEVICE_TARGET" --parallel.world_size "$rank_size" --parallel.tensor "$tensor" "$@")
without_ranks "${training[@]}"
command -v mpirun > /dev/null || fail "mpirun is not installed (Debian: apt-get install openmpi-bin); \
scripts/run_distribute_train.sh starts ranks without it"
port=$("$VENV_PYTHON" -c 'from src.parallel.launch.launcher import free_port; print(free_port())')
passed_on=()
for name in $(compgen -e | grep -E '^(PATH|LD_LIBRARY_PATH|PYTHONPATH|GLOG_v|NCCL_.*)$'); do
    passed_on+=(-x "$name")
done
options=(-n "$rank_size")
[ "$hostfile" = none ] || options+=(--hostfile "$hostfile")
[ "$DEVICE_TARGET" != CPU ] || options+=(--oversubscribe)  # there may be more ranks than cores
# odls_base_sigkill_timeout: seconds that mpirun gives the ranks to save and end, when the run stops or fails.
exec mpirun --allow-run-as-root --mca odls_base_sigkill_timeout 10 "${passed_on[@]}" "${options[@]}" \
    "$VENV_PYTHON" -m src.parallel.launch --mpirun --rank_size "$rank_size" --device_target "$DEVICE_TARGET" \
    --scheduler_address "$first_host" --scheduler_port "$port" \
    -- "${training[@]}"
