#!/bin/bash
# Stop the processes that a start script has started. They have its mark in their environment.
#
# usage: bash serving_increment/stop_pangu.sh      PANGU_RUN has the same value as at the start
set -euo pipefail
run=${PANGU_RUN:-$(cd "$(dirname "$0")" && pwd)}/pangu.run
[ -f "$run" ] || { echo "nothing was started from $(dirname "$run")" && exit 0; }
mark=$(cat "$run")

ours() {
    local environment process
    for environment in /proc/[0-9]*/environ; do
        process=${environment#/proc/}
        process=${process%/environ}
        if grep -qzxs "PANGU_MARK=$mark" "$environment" && ! grep -qs '^State:.Z' "/proc/$process/status"; then
            echo "$process"
        fi
    done
}

signal=TERM
for ((tenths = 0; tenths < 300; tenths++)); do
    mapfile -t processes < <(ours)
    [ ${#processes[@]} -gt 0 ] || break
    [ $tenths -ne 200 ] || signal=KILL
    if [ $((tenths % 100)) -eq 0 ]; then
        kill -$signal "${processes[@]}" 2> /dev/null || true
    fi
    sleep 0.1
done
folder=${run%.run}.folder
[ ! -f "$folder" ] || rm -rf "$(cat "$folder")"
rm -f "$folder" "$run"
echo "stopped"
