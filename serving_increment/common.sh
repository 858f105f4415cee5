# shellcheck shell=bash
# For the start scripts: `. "$(dirname "$0")/common.sh"`. What they leave behind (logs, sockets, what stop_pangu.sh needs)
# lies in PANGU_RUN, a folder; serving_increment itself when not given.
SERVING=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$SERVING/../scripts/common.sh"
SERVING_PYTHON=$ROOT/.venv-serving/bin/python
PANGU_RUN=${PANGU_RUN:-$SERVING}
export PANGU_HOST=${PANGU_HOST:-127.0.0.1} GRPC_PORT=${GRPC_PORT:-5500} REST_PORT=${REST_PORT:-1500}
PAGE_PORT=${PAGE_PORT:-5000}
START_SECONDS=${START_SECONDS:-600}

# in_background FOLDER LOG COMMAND...: a process of this start, by the mark in its environment, which its children
# inherit. It works in the folder.
in_background() {
    local folder=$1 log=$PANGU_RUN/$2
    shift 2
    (cd "$folder" && exec setsid "$@" > "$log" 2>&1 < /dev/null) &
}

stop() {
    env -u PANGU_MARK PANGU_RUN="$PANGU_RUN" bash "$SERVING/stop_pangu.sh" > /dev/null
}

# watch PROCESS LOG: where this process ends while others are waited for, the start has failed.
watched=()
watch() {
    watched+=("$1 $PANGU_RUN/$2")
}

# wait_for URL: until it answers; if a watched process ends before, its error is told and all is stopped.
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

# check_places MODEL TOKENIZER: PANGU_MODEL and PANGU_TOKENIZER are there.
check_places() {
    export PANGU_MODEL=$1 PANGU_TOKENIZER=$2
    [ -f "$PANGU_MODEL/model.json" ] || fail "$PANGU_MODEL holds no exported model (model.json); \
docs/serving.md says what must lie where"
    [ -e "$PANGU_TOKENIZER" ] || fail "no vocabulary at $PANGU_TOKENIZER: copy the vocab.model there, or say \
PANGU_TOKENIZER=DIR"
    bash "$ROOT/scripts/setup_env.sh" serving
    PANGU_MODEL=$(realpath "$PANGU_MODEL") PANGU_TOKENIZER=$(realpath "$PANGU_TOKENIZER")
}

# begin: from here on, what starts has this start's mark.
begin() {
    [ ! -f "$PANGU_RUN/pangu.run" ] || fail "$PANGU_RUN/pangu.run says that it was started already: bash stop_pangu.sh"
    mkdir -p "$PANGU_RUN"
    PANGU_RUN=$(realpath "$PANGU_RUN")
    export PANGU_MARK=$RANDOM$RANDOM-$$
    echo "$PANGU_MARK" > "$PANGU_RUN/pangu.run"
}

# serve FOLDER: Serving with the FOLDER's serving_server.py, then the page; the addresses are printed.
serve() {
    in_background "$PANGU_RUN" serving_server.log "$SERVING_PYTHON" "$1/serving_server.py"
    watch $! serving_server.log
    wait_for "http://127.0.0.1:$REST_PORT/health"
    # Not in PANGU_RUN: `-m` looks for modules there, and serving_increment has a folder flask.
    in_background "$ROOT" flask.log "$VENV_PYTHON" -m serving_increment.flask.server --backend serving \
        --model "$PANGU_MODEL" --tokenizer "$PANGU_TOKENIZER" --serving_address "http://127.0.0.1:$REST_PORT" \
        --host "$PANGU_HOST" --port "$PAGE_PORT"
    watch $! flask.log
    wait_for "http://127.0.0.1:$PAGE_PORT/health"
    echo "MindSpore Serving: gRPC $PANGU_HOST:$GRPC_PORT, REST http://$PANGU_HOST:$REST_PORT/model/pangu:predict"
    echo "the page: http://$PANGU_HOST:$PAGE_PORT"
}
