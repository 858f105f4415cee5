#!/bin/bash
# Make the environment if it is missing, and run the tests.
#
# usage: bash scripts/run_tests.sh [pytest arguments]
# Without arguments it runs the tests that are not slow, with a worker for each core but at most four.
. "$(dirname "$0")/common.sh"
cd "$ROOT"
if [ $# -eq 0 ]; then
    workers=$(nproc)
    set -- -m "not slow" -n $((workers < 4 ? workers : 4)) --dist loadfile
fi
exec "$VENV_PYTHON" -m pytest "$@"
