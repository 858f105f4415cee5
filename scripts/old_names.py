"""Answers the commands of older systems whose programs are not here. Links with the old names lead to this file.

docs/migration.md lists the commands of all older systems beside their equals.
"""

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Programs with the same arguments: they run.
SAME = {"hccl_tools.py": "src.parallel.hccl_tools", "merge_hccl.py": "src.parallel.merge_hccl"}
# Other programs: what does their work here.
EQUALS = {
    "run_mindformer.py": "train and finetune are `python train.py --mode 2.6B --data.train DIR "
    "[--training.init_checkpoint FILE]`, eval is `python eval.py --checkpoint FILE --mode 2.6B --task tnews "
    "--task_path DIR`, predict is `python predict.py --checkpoint FILE --mode 2.6B --prompt TEXT`",
    "convert_weight.py": "`python -m src.checkpoint.convert --from official --to mindformers --checkpoint DIR "
    "--strategy FILE --output FOLDER`, with the .ckpt and .npy files in DIR",
    "pretrain_data_process.py": "`python -m src.preprocess --input_glob 'data/*.txt' --dataset_type wikitext "
    "--tokenizer jieba --model_file vocab.model`",
    "tnews_data_process.py": "eval.py reads the published files, and nothing is converted: `python eval.py "
    "--checkpoint FILE --mode 2.6B --task tnews --task_path DIR`",
    "cmrc2018_data_process.py": "eval.py reads the published files, and nothing is converted: `python eval.py "
    "--checkpoint FILE --mode 2.6B --task cmrc2018 --task_path DIR`",
    "generate_samples_Pangu.py": "`python -m src.checkpoint.convert --from megatron --to mindspore --checkpoint DIR "
    "--output FILE`, then `python predict.py --checkpoint FILE --mode 2.6B --generation.method sample "
    "--generation.top_k 10 --generation.max_new_tokens 50`; in PyTorch the same flags after "
    "`.venv-huggingface/bin/python -m ports.huggingface.generate`",
    "split_full_model_into_mp_model.py": "`python -m src.checkpoint.convert --from megatron --to megatron --checkpoint "
    "DIR --output FOLDER --parts 2` for the port; training here splits a checkpoint by itself",
    "merge_mp_partitions.py": "`python -m src.checkpoint.convert --from megatron --to megatron --checkpoint DIR "
    "--output FOLDER --parts 1` for the port, or `--to mindspore` to go on here",
    "preprocess_data.py": "`python -m src.preprocess --input_glob 'data/*.json' --dataset_type jsonl --model_file "
    "vocab.model`; in PyTorch, `ports.huggingface.train` reads its MindRecord",
}


def main() -> None:
    """Run the program of this name, or say what does its work here, with status 2."""
    name = Path(sys.argv[0]).name
    if name in SAME:
        sys.path[0] = str(ROOT)  # in place of this file's folder, which Python puts there
        runpy.run_module(SAME[name], run_name="__main__")
        return
    print(f"error: {name} is a program of an older system; here {EQUALS[name]} (docs/migration.md)", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
