#!/bin/bash
# Run MindFormers with PanGu-alpha. The links have the names of MindFormers' own scripts, and each one does what its name says.
#
# usage: bash scripts/run_standalone.sh CONFIG DEVICE_ID MODE [flags of ports.mindformers.run_mindformer]
#        bash scripts/run_distribute.sh RANK_TABLE CONFIG [FIRST,END] MODE RANK_SIZE [flags]
#   CONFIG       YAML file, such as configs/pangualpha/run_pangualpha_tiny.yaml
#   DEVICE_ID    number of the device
#   MODE         train, finetune, eval or predict
#   RANK_TABLE   rank table of all devices, made by python -m src.parallel.hccl_tools; or none
#   [FIRST,END]  ranks of this machine, from FIRST to before END
#   RANK_SIZE    number of ranks on all machines, such as 96, or 8*12 as MindFormers' document has it
# The log of rank r is device{r}/log{r}.log; the terminal also shows the log of this machine's first rank.
#
# Environment: DEVICE_TARGET is the kind of device, Ascend (default), GPU or CPU; run_standalone.sh takes that of CONFIG by
# default. Several machines without a rank table need MS_SCHED_HOST, the address of the machine of rank 0; MS_SCHED_PORT
# chooses the port. PYTHON has MindFormers (.venv-mindformers/bin/python).
set -euo pipefail

ROOT=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
name=$(basename "$0")

fail() {
    echo "error: $1" >&2
    exit 2
}

python=${PYTHON:-$ROOT/.venv-mindformers/bin/python}
[ -n "${PYTHON-}" ] || [ -x "$python" ] ||
    fail "no environment with MindFormers: \`bash scripts/setup_env.sh mindformers\` makes one; PYTHON names another"
export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}
program=(-m ports.mindformers.run_mindformer)
case $name in
    run_standalone.sh)
        [ $# -ge 3 ] || fail "usage: bash scripts/run_standalone.sh CONFIG DEVICE_ID MODE [flags]"
        exec "$python" "${program[@]}" --config "$1" --device_id "$2" --run_mode "$3" --use_parallel False \
            ${DEVICE_TARGET:+--device_target "$DEVICE_TARGET"} "${@:4}"
        ;;
    run_distribute.sh)
        [ $# -ge 5 ] || fail "usage: bash scripts/run_distribute.sh RANK_TABLE CONFIG [FIRST,END] MODE RANK_SIZE [flags]"
        table=$1 config=$2 ranks=$3 mode=$4 size=$5
        range='^\[([0-9]{1,6}),([0-9]{1,6})[])]$' # [0,8] and [0,8)
        [[ $ranks =~ $range ]] || fail "'$ranks' is no range of ranks such as [0,8]"
        first=$((10#${BASH_REMATCH[1]})) end=$((10#${BASH_REMATCH[2]}))
        [ "$first" -lt "$end" ] || fail "$ranks holds no rank; [0,8] are the ranks 0 to 7"
        product='^[1-9][0-9]{0,5}(\*[1-9][0-9]{0,5})?$'
        [[ $size =~ $product ]] || fail "RANK_SIZE '$size' is no number of ranks"
        [ "$table" != none ] || table=
        exec "$python" -m src.parallel.launch --rank_size $((size)) ${table:+--rank_table "$table"} \
            --rank_start "$first" --local_device_num $((end - first)) --device_target "${DEVICE_TARGET:-Ascend}" \
            ${MS_SCHED_HOST:+--scheduler_address "$MS_SCHED_HOST"} ${MS_SCHED_PORT:+--scheduler_port "$MS_SCHED_PORT"} \
            -- "${program[@]}" --config "$config" --run_mode "$mode" --use_parallel True \
            --device_target "${DEVICE_TARGET:-Ascend}" "${@:6}"
        ;;
    *) fail "$name is called by its links run_standalone.sh and run_distribute.sh" ;;
esac
