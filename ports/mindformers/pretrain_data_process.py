"""Texts to records for training: `python -m ports.mindformers.pretrain_data_process --help`. MindFormers' flags."""

import sys
from pathlib import Path

from ports.mindformers.pretrained import DOWNLOADS
from src.common.errors import Parser, fail, run_program
from src.tokenization_jieba import MODEL_NAME


def main() -> None:
    """Parse the command line, and run `src.preprocess` with it."""
    parser = Parser(
        prog="python -m ports.mindformers.pretrain_data_process", description=__doc__.split(":")[0], allow_abbrev=False
    )
    add = parser.add_argument
    add("--input_glob", required=True, metavar="PATTERN", help="text files, such as 'data/*.txt'")
    add("--output_file", default="./output/pangu.mindrecord", metavar="FILE", help="MindRecord file to write")
    add("--dataset_type", default="wikitext", help="form of the texts, as `python -m src.preprocess --help` lists them")
    add("--tokenizer", default="jieba", choices=["jieba", "gpt"], help="kind of tokenizer")
    add("--model_file", metavar="FILE", help=f"vocab.model; default: {DOWNLOADS / MODEL_NAME}")
    add("--eot", type=int, help="id that ends a document; default: 6, <pad>, as in the released models")
    add("--data_column_name", default="input_ids", help="name of the column")
    add(
        "--seq_length", type=int, default=1025, help="ids of a record: the model's seq_length, and 1 for the last label"
    )
    add("--num_process", type=int, default=0, help="processes that tokenize; 0: one for each core")
    arguments = vars(parser.parse_args())
    arguments["model_file"] = arguments["model_file"] or str(DOWNLOADS / MODEL_NAME)
    if not Path(arguments["model_file"]).exists():
        fail(f"no vocabulary at {arguments['model_file']}: give --model_file, or `bash scripts/get_tokenizer.sh DIR`")
    from src import preprocess

    given = {name: value for name, value in arguments.items() if value is not None}
    sys.argv = [sys.argv[0], *(f"--{name}={value}" for name, value in given.items())]
    preprocess.main()


if __name__ == "__main__":
    run_program(main)
