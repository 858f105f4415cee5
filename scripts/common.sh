# For the other scripts: `. "$(dirname "$0")/common.sh"` makes the environment and sets ROOT and VENV_PYTHON.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV_PYTHON=$ROOT/.venv/bin/python

fail() {
    echo "error: $1" >&2
    exit 2
}

# usage TEXT: print it and leave with status 2.
usage() {
    echo "usage: $1" >&2
    exit 2
}

# logged RANK COMMAND...: run on one device, output on the terminal and in device{RANK}/log{RANK}.log.
logged() {
    local rank=$1
    shift
    mkdir -p "device$rank"
    "$@" 2>&1 | tee "device$rank/log$rank.log"
}

bash "$ROOT/scripts/setup_env.sh"
export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}
