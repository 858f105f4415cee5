"""PanGu-α in PyTorch, for Hugging Face's Transformers 5.16 to 5.24.

`configuration_pangu_alpha`, `modeling_pangu_alpha`, `tokenization_pangu_alpha` and `chat_template.jinja` lie beside
every checkpoint that `python -m src.checkpoint.convert --to hf` writes, so they import nothing of this repository. They
run in the environment of `bash scripts/setup_env.sh huggingface`, where MindSpore is not.

`generate` and `train` are command lines with the flags of the original PyTorch port, and share `command_line`.
`train` reads data with `records` and `mindrecord`, and weights with `weights`. `trainer` is its loop, and `parallel`
what the loop needs on several processes.
"""
