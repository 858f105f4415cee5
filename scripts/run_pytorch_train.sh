#!/bin/bash
# Train PanGu-alpha in PyTorch on several devices. The links in examples/ have the names of the original PyTorch port, and
# each one does what its name says. Flags at the end replace those below: `python -m ports.huggingface.train --help`.
#
# usage: bash examples/finetune_pangu_distributed.sh LOAD SAVE DATA_PATH [flags of ports.huggingface.train]
#        bash examples/pretrain_pangu_distributed_2.6B.sh VOCAB_FILE SAVE DATA_PATH [flags of ports.huggingface.train]
#   LOAD        folder of the model to begin with, in Hugging Face's format
#   VOCAB_FILE  vocab.model of a new model
#   SAVE        folder of the run; the same command goes on with its run
#   DATA_PATH   MindRecord file or folder, .txt or .jsonl
#
# Environment: GPUS_PER_NODE (2) and MP_SIZE (2), the number of devices that share a layer's matrices; for several machines
# NNODES (1), NODE_RANK (0), MASTER_ADDR (localhost) and MASTER_PORT (6000); PYTHON, with PyTorch, Transformers and what
# requirements-huggingface.txt lists besides (.venv-huggingface/bin/python).
set -euo pipefail

ROOT=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
name=$(basename "$0")

fail() {
    echo "error: $1" >&2
    exit 2
}

case $name in
    finetune_pangu_distributed.sh) first=LOAD ;;
    pretrain_pangu_distributed_2.6B.sh | pretrain_gpt2_distributed_2.6B.sh) first=VOCAB_FILE ;;
    *) fail "$name is called by its links in examples/" ;;
esac
[ $# -ge 3 ] || fail "usage: bash examples/$name $first SAVE DATA_PATH [flags of ports.huggingface.train]"
if [ "$first" = LOAD ]; then
    begin=(--load "$1" --train-iters 10000 --lr 5e-5 --min-lr 1e-6)
else
    begin=(--vocab-file "$1" --num-layers 31 --hidden-size 2560 --num-attention-heads 32 --max-position-embeddings 1024
        --train-iters 500000 --lr-decay-iters 320000 --lr 1.5e-4 --min-lr 1e-5 --adam-beta2 0.95)
fi

gpus=${GPUS_PER_NODE:-2} nodes=${NNODES:-1} parts=${MP_SIZE:-2}
for number in "$gpus" "$nodes" "$parts"; do
    [[ $number =~ ^[1-9][0-9]*$ ]] || fail "GPUS_PER_NODE, NNODES and MP_SIZE are whole numbers from 1, not '$number'"
done
[ $((gpus * nodes % parts)) -eq 0 ] || fail "MP_SIZE $parts does not divide the $((gpus * nodes)) devices"
python=${PYTHON:-$ROOT/.venv-huggingface/bin/python}
[ -n "${PYTHON-}" ] || [ -x "$python" ] ||
    fail "no environment with PyTorch: \`bash scripts/setup_env.sh huggingface\` makes one for CPUs; PYTHON names another"
export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}
exec "$python" -m torch.distributed.run --nproc_per_node "$gpus" --nnodes "$nodes" --node_rank "${NODE_RANK:-0}" \
    --master_addr "${MASTER_ADDR:-localhost}" --master_port "${MASTER_PORT:-6000}" \
    -m ports.huggingface.train "${begin[@]}" --save "$2" --data-path "$3" --tp "$parts" --fsdp $((gpus * nodes / parts)) \
    --batch-size 1 --seq-length 1024 --lr-decay-style cosine --weight-decay 1e-2 --clip-grad 1.0 --warmup 0.01 --bf16 \
    --checkpoint-activations --log-interval 100 --save-interval 10000 "${@:4}"
