#!/bin/bash
# Run the checks that need no test run. Without arguments it runs all of them; it stops at the first that fails.
#
# usage: bash scripts/run_checks.sh [imports] [style] [types] [shell] [kernels]
#   imports  imports between rooms go one way (import-linter, contracts in pyproject.toml)
#   style    style and format of the Python files (ruff)
#   types    types of src and of the programs in the top folder (ty)
#   shell    shell scripts (shellcheck)
#   kernels  format of the C++ kernels (clang-format)
. "$(dirname "$0")/common.sh"
cd "$ROOT"
[ $# -gt 0 ] || set -- imports style types shell kernels
for check in "$@"; do
    echo "== $check"
    case $check in
        imports) .venv/bin/lint-imports --no-logo ;;
        style)
            .venv/bin/ruff check .
            .venv/bin/ruff format --check .
            ;;
        types) .venv/bin/ty check ;;
        shell) .venv/bin/shellcheck scripts/*.sh serving_increment/*.sh .ci/run ;;
        kernels) .venv/bin/clang-format --dry-run --Werror src/cpu_kernels/*.cpp src/cpu_kernels/*.h ;;
        *) usage "bash scripts/run_checks.sh [imports] [style] [types] [shell] [kernels]" ;;
    esac
done
