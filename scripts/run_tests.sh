#!/bin/bash
# Make the environment if it is missing, and run the tests.
#
# usage: bash scripts/run_tests.sh [pytest arguments]
# Without arguments it runs the tests that are not slow: -m "not slow".
. "$(dirname "$0")/common.sh"
cd "$ROOT"
if [ $# -eq 0 ]; then
    set -- -m "not slow"
fi
exec "$VENV_PYTHON" -m pytest "$@"
