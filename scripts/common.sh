# shellcheck shell=bash
# The other scripts source this file: `. "$(dirname "$0")/common.sh"`. It makes the environment and sets ROOT and
# VENV_PYTHON.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV_PYTHON=$ROOT/.venv/bin/python
DEVICE_TARGET=${DEVICE_TARGET:-Ascend}  # the distributed scripts use it

fail() {
    echo "error: $1" >&2
    exit 2
}

# usage TEXT: print the usage and exit with status 2.
usage() {
    echo "usage: $1" >&2
    exit 2
}

# logged RANK COMMAND...: replace this shell by a command; its output goes to the terminal and to device{RANK}/log{RANK}.log.
# Signals to the script so reach the command. The writer of the log ignores them: it ends when the command does.
logged() {
    local rank=$1
    shift
    mkdir -p "device$rank" 2> /dev/null || fail "cannot write device$rank/log$rank.log in $PWD: go to another folder"
    exec "$@" > >(trap '' INT TERM HUP; exec tee "device$rank/log$rank.log") 2>&1
}

# link_old_names FIRST NUMBER: make device_0 lead to device0, and so on, for NUMBER ranks from FIRST. The ModelZoo's documents
# move device_0.
link_old_names() {
    local rank
    for ((rank = $1; rank < $1 + $2; rank++)); do
        [ -L "device_$rank" ] || [ ! -e "device_$rank" ] || fail "$PWD/device_$rank is in the way; move it"
        ln -sfn "$PWD/device$rank" "device_$rank" 2> /dev/null ||
            fail "cannot write device_$rank in $PWD: go to another folder"
    done
}

# step COMMAND...: run a command of several. If the script is told to stop, it stops the command, waits for it, and ends.
# The command is a background job, because bash handles a signal only after a command in the foreground.
step() {
    local child status=0 told=0
    "$@" &
    child=$!
    trap 'told=143; kill -TERM "$child" 2> /dev/null' TERM HUP
    trap 'told=130; kill -TERM "$child" 2> /dev/null' INT
    while wait "$child" || status=$?; kill -0 "$child" 2> /dev/null; do :; done
    trap - TERM HUP INT
    [ "$told" -eq 0 ] || exit "$told"
    return "$status"
}

# dtype_of TYPE: print the configuration's name of fp32 or fp16.
dtype_of() {
    case $1 in
        fp32) echo float32 ;;
        fp16) echo float16 ;;
        *) fail "TYPE '$1' is neither fp32 nor fp16" ;;
    esac
}

# check_counts NAME VALUE ...: fail unless every value is a positive integer.
check_counts() {
    while [ $# -gt 0 ]; do
        [[ $2 =~ ^[1-9][0-9]{0,8}$ ]] || fail "$1 '$2' is not a whole number of at least 1"
        shift 2
    done
}

# Bash ignores `set -e` within $(...), so what may fail here says `|| return`.
# weights STRATEGY CKPT_PATH CKPT_NAME: print the path of the checkpoint to load. It is CKPT_PATH, after a check that a
# run's strategy files match it. With the strategy file of a release, it is one file with all the weights in
# CKPT_PATH/whole. The first call makes it, and a later call makes it again if the release has changed.
weights() {
    [ "$1" != none ] || { echo "$2" && return; }
    [ -e "$1" ] || fail "STRATEGY '$1' does not exist: give the *strategy*.ckpt of a release, or none for a \
checkpoint of one file; for a checkpoint that was trained here give its run's folder strategy, or none"
    if [ -f "$2/state.json" ] || [ -d "$2/checkpoint" ]; then
        "$VENV_PYTHON" -m src.checkpoint.check --strategy "$1" --checkpoint "$2" >&2 || return
        echo "$2"
        return
    fi
    "$VENV_PYTHON" -m src.checkpoint.whole --strategy "$1" --checkpoint "$2" --checkpoint_name "$3"
}

# tensor_parallel MODE RANKS [flags]: print the tensor-parallel size: the value of --parallel.tensor. Without this flag,
# it is the ModelZoo's default for the released sizes, min(8, RANKS) with RANKS per stage, and 1 for other models.
tensor_parallel() {
    local mode=${1^^} ranks=$2
    shift 2
    while [ $# -gt 0 ]; do
        case $1 in
            --parallel.tensor) echo "${2-}" && return ;;
            --parallel.tensor=*) echo "${1#*=}" && return ;;
        esac
        shift
    done
    case $mode in
        1.3B | 2.6B | 13B | 200B | 60B-MOE) echo $((ranks < 8 ? ranks : 8)) ;;
        *) echo 1 ;;
    esac
}

# without_ranks PROGRAM...: replace this shell by a program whose flags ask for a plan or a dry run, which start no ranks.
without_ranks() {
    case " $* " in *" --plan "* | *" --dry_run "*) exec "$VENV_PYTHON" "$@" ;; esac
}

# launch RANK_SIZE RANK_TABLE RANK_START LOCAL_DEVICE_NUM PROGRAM...: replace this shell by the launcher of the ranks on
# this machine. RANK_TABLE may be none; then several machines connect by MS_SCHED_HOST and MS_SCHED_PORT.
launch() {
    local rank_size=$1 table=$2 start=$3 number=$4
    shift 4
    [ "$table" != none ] || table=
    without_ranks "$@"
    exec "$VENV_PYTHON" -m src.parallel.launch --rank_size "$rank_size" ${table:+--rank_table "$table"} \
        --rank_start "$start" --local_device_num "$number" --device_target "$DEVICE_TARGET" \
        ${MS_SCHED_HOST:+--scheduler_address "$MS_SCHED_HOST"} ${MS_SCHED_PORT:+--scheduler_port "$MS_SCHED_PORT"} \
        -- "$@"
}

# launch_training: takes the arguments of run_distribute_train.sh.
launch_training() {
    local dataset=$1 table=$2 rank_size=$3 type=$4 mode=$5 stages=$6 micro_batches=$7 per_batch=$8 start=$9 number=${10}
    shift 10
    check_counts RANK_SIZE "$rank_size" STAGE_NUM "$stages" MICRO_SIZE "$micro_batches" PER_BATCH "$per_batch" \
        LOCAL_DEVICE_NUM "$number"
    [ $((rank_size % stages)) -eq 0 ] || fail "STAGE_NUM $stages does not divide RANK_SIZE $rank_size"
    local dtype tensor
    dtype=$(dtype_of "$type")
    tensor=$(tensor_parallel "$mode" $((rank_size / stages)) "$@")
    launch "$rank_size" "$table" "$start" "$number" "$ROOT/train.py" --mode "$mode" --data.train "$dataset" \
        --model.param_init_dtype "$dtype" --training.batch_size "$per_batch" --parallel.device_target "$DEVICE_TARGET" \
        --parallel.world_size "$rank_size" --parallel.pipeline "$stages" --parallel.micro_batch_num "$micro_batches" \
        --parallel.tensor "$tensor" "$@"
}

# launch_moe_training: takes the arguments of run_distribute_train_moe.sh.
launch_moe_training() {
    local first=("${@:1:10}") rank_size=$3 mode=$5 stages=$6 experts_a_part=${11} alltoall=${12} parts=1 tensor
    shift 12
    check_counts RANK_SIZE "$rank_size" STAGE_NUM "$stages" EXPERT_NUM_PER_EP "$experts_a_part"
    tensor=$(tensor_parallel "$mode" $((rank_size / stages)) "$@")
    check_counts --parallel.tensor "$tensor"
    case $alltoall in
        0) ;;
        1) parts=$((rank_size / stages / tensor)) ;;
        *) fail "ENABLE_ALLTOALL '$alltoall' is neither 0 nor 1" ;;
    esac
    launch_training "${first[@]}" --model.num_experts $((experts_a_part * parts)) --model.expert_interval 1 \
        --parallel.expert "$parts" "$@"
}

# launch_export STRATEGY CKPT_DIR RANK_TABLE RANK_SIZE RANK_START LOCAL_DEVICE_NUM [flags]: reads MODE from the
# environment.
launch_export() {
    local strategy=$1 directory=$2 table=$3 rank_size=$4 start=$5 number=$6 mode=${MODE-13B} checkpoint
    shift 6
    check_counts RANK_SIZE "$rank_size" LOCAL_DEVICE_NUM "$number"
    checkpoint=$(weights "$strategy" "$directory" "")
    [[ ! $start =~ ^[0-9]+$ ]] || link_old_names "$start" "$number"
    launch "$rank_size" "$table" "$start" "$number" "$ROOT/export.py" ${mode:+--mode "$mode"} \
        --checkpoint "$checkpoint" --output 'device{rank}' --parallel.device_target "$DEVICE_TARGET" \
        --parallel.world_size "$rank_size" --parallel.tensor "$rank_size" "$@"
}

bash "$ROOT/scripts/setup_env.sh"
export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}
