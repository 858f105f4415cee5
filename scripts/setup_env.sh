#!/bin/bash
# Make the virtual environment .venv with the exact versions of requirements-lock-3.*.txt; do nothing when it is right.
#
# usage: bash scripts/setup_env.sh          PYTHON=/path/to/python3.11 chooses an interpreter
set -euo pipefail

ROOT=$(cd "$(dirname "$0")/.." && pwd)
VENV=$ROOT/.venv
STAMP=$VENV/installed.sha256

fail() {
    echo "error: $1" >&2
    exit 2
}

minor_version() {
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null || true
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3.10 python3}; do
        case $(minor_version "$candidate") in
            3.10 | 3.11 | 3.12) echo "$candidate" && return ;;
        esac
    done
    return 1
}

lock_of() {
    echo "$ROOT/requirements-lock-$(minor_version "$1").txt"
}

is_right() {
    [ -x "$VENV/bin/python" ] && [ -f "$STAMP" ] || return 1
    local lock
    lock=$(lock_of "$VENV/bin/python")
    [ -f "$lock" ] && [ "$(cat "$STAMP")" = "$(sha256sum < "$lock")" ]
}

if is_right; then
    exit 0
fi
# Two scripts that start together make one environment.
exec 9> "$ROOT/.venv.lock"
flock 9
if is_right; then
    exit 0
fi

python=$(find_python) || fail "no Python 3.10, 3.11 or 3.12 (MindSpore 2.10 has wheels for these); install one, or name \
it: PYTHON=/path/to/python3.11 bash scripts/setup_env.sh"
echo "making $VENV with $("$python" --version) (MindSpore and the rest: about 1 GB, some minutes)"
rm -rf "$VENV"
"$python" -m venv "$VENV" || fail "$python cannot make a virtual environment; on Debian: apt-get install python3-venv"
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -r "$(lock_of "$python")" ||
    fail "pip could not install $(basename "$(lock_of "$python")") (see above); check the network and pip's index"
"$VENV/bin/python" -m pip check --disable-pip-version-check > /dev/null ||
    fail "the packages in $(basename "$(lock_of "$python")") don't fit together: $VENV/bin/python -m pip check"
sha256sum < "$(lock_of "$python")" > "$STAMP"
