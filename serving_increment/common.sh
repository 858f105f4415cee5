# shellcheck shell=bash
# The start scripts source this file: `. "$(dirname "$0")/common.sh"`. PANGU_RUN is the folder for logs, sockets and the
# mark that stop_pangu.sh needs. Default: serving_increment.
SERVING=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$SERVING/../scripts/common.sh"
SERVING_PYTHON=$ROOT/.venv-serving/bin/python
PANGU_RUN=${PANGU_RUN:-$SERVING}
export PANGU_HOST=${PANGU_HOST:-127.0.0.1} GRPC_PORT=${GRPC_PORT:-5500} REST_PORT=${REST_PORT:-1500}
PAGE_PORT=${PAGE_PORT:-5000}
START_SECONDS=${START_SECONDS:-600}

# in_background FOLDER LOG COMMAND...: start a process in a folder. It and its children have this start's mark in their
# environment.
in_background() {
    local folder=$1 log=$PANGU_RUN/$2
    shift 2
    (cd "$folder" && exec setsid "$@" > "$log" 2>&1 < /dev/null) &
}

stop() {
    env -u PANGU_MARK PANGU_RUN="$PANGU_RUN" bash "$SERVING/stop_pangu.sh" > /dev/null
}

# watch PROCESS LOG: the start fails if this process ends during wait_for.
watched=()
watch() {
    watched+=("$1 $PANGU_RUN/$2")
}

# wait_for URL: wait until a URL answers. If a watched process ends before, print its error and stop everything.
wait_for() {
    local second process log
    for ((second = 0; second < START_SECONDS; second++)); do
        ! curl --noproxy '*' --silent --fail --output /dev/null --max-time 5 "$1" || return 0
        for process in "${watched[@]}"; do
            read -r process log <<< "$process"
            if ! kill -0 "$process" 2> /dev/null; then
                stop
                fail "$(grep -o '^error: .*' "$log" | tail -n 1 | cut -c 8- | grep . ||
                    echo "a server has ended while it started; see $log and $PANGU_RUN/serving_logs")"
            fi
        done
        sleep 1
    done
    stop
    fail "no answer at $1 within $START_SECONDS seconds; see the logs in $PANGU_RUN"
}

# check_places MODEL TOKENIZER: fail unless both exist; export them as PANGU_MODEL and PANGU_TOKENIZER.
check_places() {
    export PANGU_MODEL=$1 PANGU_TOKENIZER=$2
    [ -f "$PANGU_MODEL/model.json" ] || fail "$PANGU_MODEL holds no exported model (model.json); \
docs/serving.md lists the places of the files"
    [ -e "$PANGU_TOKENIZER" ] || fail "no vocabulary at $PANGU_TOKENIZER: copy the vocab.model there, or set \
PANGU_TOKENIZER=DIR"
    bash "$ROOT/scripts/setup_env.sh" serving
    PANGU_MODEL=$(realpath "$PANGU_MODEL") PANGU_TOKENIZER=$(realpath "$PANGU_TOKENIZER")
}

# begin: make the mark of this start. Processes that start later inherit it.
begin() {
    [ ! -f "$PANGU_RUN/pangu.run" ] || fail "$PANGU_RUN/pangu.run exists: the servers were started already; stop them: bash stop_pangu.sh"
    mkdir -p "$PANGU_RUN"
    PANGU_RUN=$(realpath "$PANGU_RUN")
    export PANGU_MARK=$RANDOM$RANDOM-$$
    echo "$PANGU_MARK" > "$PANGU_RUN/pangu.run"
}

# serve FOLDER: start Serving by the folder's serving_server.py, then the page, and print the addresses.
serve() {
    in_background "$PANGU_RUN" serving_server.log "$SERVING_PYTHON" "$1/serving_server.py"
    watch $! serving_server.log
    wait_for "http://127.0.0.1:$REST_PORT/health"
    # Do not work in PANGU_RUN: `-m` would find the folder serving_increment/flask there in place of the package flask.
    in_background "$ROOT" flask.log "$VENV_PYTHON" -m serving_increment.flask.server --backend serving \
        --model "$PANGU_MODEL" --tokenizer "$PANGU_TOKENIZER" --serving_address "http://127.0.0.1:$REST_PORT" \
        --host "$PANGU_HOST" --port "$PAGE_PORT"
    watch $! flask.log
    wait_for "http://127.0.0.1:$PAGE_PORT/health"
    echo "MindSpore Serving: gRPC $PANGU_HOST:$GRPC_PORT, REST http://$PANGU_HOST:$REST_PORT/model/pangu:predict"
    echo "the page: http://$PANGU_HOST:$PAGE_PORT"
}
