# shellcheck shell=bash
# The start scripts source this file: `. "$(dirname "$0")/common.sh"`. PANGU_RUN is the folder for logs, sockets and the
# mark that stop_pangu.sh needs. Default: serving_increment.
SERVING=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$SERVING/../scripts/common.sh"
PANGU_RUN=${PANGU_RUN:-$SERVING}
export PANGU_HOST=${PANGU_HOST:-127.0.0.1} GRPC_PORT=${GRPC_PORT:-5500} REST_PORT=${REST_PORT:-1500}
PAGE_PORT=${PAGE_PORT:-5000}
START_SECONDS=${START_SECONDS:-600}

# in_background FOLDER LOG COMMAND...: start a process in a folder. It and its children have this start's mark in their
# environment.
in_background() {
    local folder=$1 log=$PANGU_RUN/$2
    shift 2
    : > "$log"  # an earlier start's lines must not be read as this one's
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

# wait_for LINE LOG URL: wait until our own server has written LINE to its log and answers at a URL; another server may
# answer there. If a watched process ends before, print its error and stop everything.
wait_for() {
    local second process log
    for ((second = 0; second < START_SECONDS; second++)); do
        if grep -q "^$1" "$PANGU_RUN/$2" &&
            curl --noproxy '*' --silent --fail --output /dev/null --max-time 5 "$3"; then
            return 0
        fi
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
    fail "no answer at $3 within $START_SECONDS seconds; see the logs in $PANGU_RUN"
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

# begin: make the mark of this start. Processes that start later inherit it. Of two starts at once, one makes the mark.
begin() {
    mkdir -p "$PANGU_RUN"
    PANGU_RUN=$(realpath "$PANGU_RUN")
    export PANGU_MARK=$RANDOM$RANDOM-$$
    (set -o noclobber && echo "$PANGU_MARK" > "$PANGU_RUN/pangu.run") 2> /dev/null ||
        fail "$PANGU_RUN/pangu.run exists or can't be written: if the servers were started already, stop them: \
bash stop_pangu.sh"
}

# reach: print the address at which this machine reaches a server that listens on PANGU_HOST.
reach() {
    case $PANGU_HOST in
        0.0.0.0 | "") echo 127.0.0.1 ;;
        ::) echo "[::1]" ;;
        *:*) echo "[$PANGU_HOST]" ;;
        *) echo "$PANGU_HOST" ;;
    esac
}

# without_spaces NAME: print paths of Serving's Python and of the servable's folder. They have no spaces, because Serving's
# own start of its worker cannot have any: if ROOT has some, they lie in a temporary folder, which stop_pangu.sh removes.
without_spaces() {
    local folder=$SERVING/$1 python=$ROOT/.venv-serving temporary
    if [[ $ROOT == *[[:space:]]* ]]; then
        temporary=$(mktemp -d)
        echo "$temporary" > "$PANGU_RUN/pangu.folder"
        mkdir "$temporary/pangu"
        cp "$folder/serving_server.py" "$temporary"
        cp "$folder"/pangu/*.py "$temporary/pangu"
        ln -s "$python" "$temporary/python"
        folder=$temporary python=$temporary/python
    fi
    echo "$python/bin/python $folder"
}

# serve NAME: start Serving by the serving_server.py of pangu_standalone or pangu_distributed, then the page, and print the addresses.
serve() {
    local here python folder
    here=$(reach)
    read -r python folder <<< "$(without_spaces "$1")"
    export no_proxy="$here${no_proxy:+,$no_proxy}"  # a proxy may not reach this machine
    in_background "$PANGU_RUN" serving_server.log "$python" "$folder/serving_server.py"
    watch $! serving_server.log
    wait_for "gRPC: " serving_server.log "http://$here:$REST_PORT/health"
    # Do not work in PANGU_RUN: `-m` would find the folder serving_increment/flask there in place of the package flask.
    in_background "$ROOT" flask.log "$VENV_PYTHON" -m serving_increment.flask.server --backend serving \
        --model "$PANGU_MODEL" --tokenizer "$PANGU_TOKENIZER" --serving_address "http://$here:$REST_PORT" \
        --host "$PANGU_HOST" --port "$PAGE_PORT" --allowed_hosts "${PANGU_ALLOWED_HOSTS:-}" \
        --allowed_origins "${PANGU_ALLOWED_ORIGINS:-}"
    watch $! flask.log
    wait_for "the page: " flask.log "http://$here:$PAGE_PORT/health"
    echo "MindSpore Serving: gRPC $PANGU_HOST:$GRPC_PORT, REST http://$PANGU_HOST:$REST_PORT/model/pangu:predict"
    echo "the page: http://$PANGU_HOST:$PAGE_PORT"
    case $PANGU_HOST in
        127.* | ::1 | localhost) echo "only this machine reaches them; PANGU_HOST=0.0.0.0 opens them to the network" ;;
    esac
}
