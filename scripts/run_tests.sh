#!/bin/bash
# Make the environment and run the tests, on a fresh machine too.
#
# usage: bash scripts/run_tests.sh [pytest arguments]        the default leaves the slow ones out: -m "not slow"
. "$(dirname "$0")/common.sh"
cd "$ROOT"
if [ $# -eq 0 ]; then
    set -- -m "not slow"
fi
exec "$VENV_PYTHON" -m pytest "$@"
