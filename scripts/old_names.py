"""Runs programs of older systems under their old names, or says what does their work. The names are links to this file.

docs/migration.md lists the commands of all older systems beside their equals.
"""

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Programs with the same arguments: they run.
SAME = {
    "hccl_tools.py": "src.parallel.hccl_tools",
    "merge_hccl.py": "src.parallel.merge_hccl",
    "run_mindformer.py": "ports.mindformers.run_mindformer",
    "convert_weight.py": "ports.mindformers.convert_weight",
    "pretrain_data_process.py": "ports.mindformers.pretrain_data_process",
    "tnews_data_process.py": "ports.mindformers.tnews_data_process",
    "cmrc2018_data_process.py": "ports.mindformers.cmrc2018_data_process",
}
# Other programs: what does their work here.
EQUALS = {
    "generate_samples_Pangu.py": "`python -m src.checkpoint.convert --from megatron --to mindspore --checkpoint DIR "
    "--output FILE`, then `python predict.py --checkpoint FILE --mode 2.6B --data.tokenizer_path DIR "
    "--generation.method sample --generation.top_k 10 --generation.max_new_tokens 50`; in PyTorch convert `--to hf "
    "--tokenizer vocab.model`, then the same flags after `.venv-huggingface/bin/python -m ports.huggingface.generate`, "
    "without --vocab-file",
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
