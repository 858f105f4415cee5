#!/bin/bash
# Build the documentation's site into site/. Broken links are errors.
#
# usage: bash scripts/build_docs.sh [flags of mkdocs build]
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup_env.sh docs
# mkdocs-material advertises its successor, Zensical, which does not search Chinese words yet.
NO_MKDOCS_2_WARNING=1 exec .venv-docs/bin/mkdocs build "$@"
