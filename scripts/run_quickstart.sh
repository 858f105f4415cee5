#!/bin/bash
# Make a corpus, train a small PanGu-alpha on it and ask it questions. It takes some minutes on a CPU. The results are
# in output/quickstart.
#
# usage: bash scripts/run_quickstart.sh
. "$(dirname "$0")/common.sh"
[ $# -eq 0 ] || usage "bash scripts/run_quickstart.sh"
cd "$ROOT"
work=output/quickstart
rm -rf "$work"

echo "== 1. corpus: facts about provinces and countries in many phrasings, sums, couplets"
step "$VENV_PYTHON" -m src.quickstart.corpus --output "$work/corpus"
head -n 5 "$work/corpus/train.txt"

echo "== 2. tokenizer with 2000 pieces, trained on the corpus"
step "$VENV_PYTHON" -m src.train_tokenizer --input_glob "$work/corpus/train.txt" --vocab_size 2000 --model_type bpe \
    --output "$work/tokenizer"

echo "== 3. MindRecord files: records of 129 ids, with <eot> (id 9) after each document"
for part in train validation; do
    step "$VENV_PYTHON" -m src.preprocess --input_glob "$work/corpus/$part.txt" --model_file "$work/tokenizer" --eot 9 \
        --seq_length 129 --output_file "$work/$part/quickstart.mindrecord"
done

echo "== 4. training"
step "$VENV_PYTHON" train.py --mode tiny --data.train "$work/train" --data.validation "$work/validation" \
    --data.tokenizer_path "$work/tokenizer" --training.output "$work/run" --training.eval_interval 250
echo "the loss curve: $work/run/loss_curve.png"

echo "== 5. questions"
printf '%s\n' '四川的省会是哪里?' '法国的首都是哪座城市?' '巴黎是哪个国家的首都?' '广东的简称是什么?' > "$work/prompts.txt"
step "$VENV_PYTHON" predict.py --checkpoint "$work/run" --prompt_file "$work/prompts.txt" --generation.max_new_tokens 8

echo "== 6. the exam"
step "$VENV_PYTHON" -m src.quickstart.exam --checkpoint "$work/run" --questions "$work/corpus/questions.jsonl"
