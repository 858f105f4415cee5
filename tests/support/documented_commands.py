"""How each command of the documentation is checked. tests/test_readme.py fails for a command that is in no table.

A key is the beginning of one command, long enough to fit no other one. A command belongs to the longest key that it
begins with.
"""

# tests/test_readme.py runs these as they are printed, and compares the printed output: all but seconds and peaks of
# memory, all but numbers, or nothing (only the exit status).
ALL, ALL_BUT_NUMBERS, NOTHING = "all", "all but numbers", "nothing"
RUN = {
    "python train.py --mode tiny --model.num_heads 5": ALL,
    "python train.py --mode 26B": ALL,
    "python train.py --mode 2.6B --parallel.tensor 3 --plan": ALL,
    "python train.py --mode 200B --plan": NOTHING,
    "python train.py --mode 200B --parallel.tensor 8 --parallel.pipeline 16": NOTHING,
    "python train.py --plan --search --mode 2.6B --parallel.world_size 8 --parallel.device_target": ALL,
    "python train.py --plan --search --mode 2.6B --parallel.world_size 8 --parallel.chip 910A": ALL,
    "python train.py --plan --search --mode 13B": ALL,
    "python train.py --plan --search --mode 200B": ALL,
    "python train.py --plan --mode 2.6B": ALL,
    "python train.py --plan --mode 2.6B --parallel.device_target Ascend --parallel.data 8": ALL,
    "python train.py --plan --mode 13B": ALL,
    "python train.py --plan --mode 200B --parallel.device_target Ascend --model.compute_dtype": ALL,
    "python train.py --plan --mode 200B --parallel.device_target Ascend --parallel.tensor": ALL,
    "python train.py --dry_run --mode tiny --parallel.tensor 2 --parallel.data 2 --parallel.pipeline 2 "
    "--parallel.micro_batch_num 2 --parallel.optimizer_shard --rank 4": ALL,
    "bash scripts/run_distribute_train.sh /path/dataset /path/hccl.json 8 fp32 2.6B": NOTHING,
    "bash scripts/run_distribute_train.sh /path/dataset /path/hccl.json 16 fp32 2.6B": NOTHING,
    "bash scripts/run_distribute_train.sh /path/dataset /path/hccl.json 16 fp32 13B": NOTHING,
    "bash scripts/run_distributed_train_moe_host_device.sh /path/dataset": NOTHING,
    "python -m src.preprocess": ALL_BUT_NUMBERS,
    'python -m src.parallel.hccl_tools --device_num "[0,8)" --server_ip 10.0.0.1': NOTHING,
    'python -m src.parallel.hccl_tools --device_num "[0,8)" --server_ip 10.0.0.2': NOTHING,
    "python -m src.parallel.merge_hccl": NOTHING,
    "python -m src.checkpoint.convert --from mindspore --to safetensors --checkpoint output/quickstart/run": ALL,
    "python -m src.checkpoint.convert --from mindspore --to megatron --checkpoint output/quickstart/run": ALL,
    "python -m src.checkpoint.convert --from mindspore --to hf --checkpoint output/quickstart/run": NOTHING,
    "python predict.py --checkpoint output/quickstart/run": NOTHING,
    "python predict.py --checkpoint output/quickstart/run --prompt": NOTHING,
    "python eval.py --checkpoint output/quickstart/run": NOTHING,
    "bash scripts/run_standalone_export.sh none output/quickstart/run '' CPU": NOTHING,
    "python -m src.cpu.quantize --checkpoint output/quickstart/run": ALL,
    'python pangu_inference.py -p "四川的省会是哪里?"': NOTHING,
}

TRAINING, SCRIPTS = "tests/scripts/test_training.py::", "tests/scripts/test_inference.py::"
SERVING, SERVERS = "tests/serving_increment/test_mindspore_serving.py::", "tests/serving_increment/test_quickstart.py::"
DRY_RUN = "tests/parallel/semi_auto/test_dry_run.py::"
ONLINE = "tests/serving/test_openai_client.py::"
PAGES = "tests/web/test_launch.py::test_a_model_of_this_machine_answers_and_ctrl_c_ends_it"
GENERATE = "tests/ports/huggingface/test_generate.py::test_the_original_s_flags_give_the_answers_of_mindspore"
TRAIN = "tests/ports/huggingface/test_train.py::"
MINDFORMERS = "tests/ports/mindformers/test_run.py::"
SOAK = "tests/benchmarks/test_serving_soak.py::test_a_healthy_server_passes"
# Run in another test, on its own data or with other numbers.
ELSEWHERE = {
    "bash scripts/run_quickstart.sh": SERVERS + "quickstart",
    "python -m src.train_tokenizer": "tests/test_train_tokenizer.py::test_command_writes_the_official_layout",
    "bash scripts/run_standalone_train.sh output/corpus": "tests/distributed/test_scripts.py::one_process",
    "python train.py --mode tiny --data.train output/quickstart/train": "tests/test_readme.py::sandbox",
    "bash scripts/run_standalone_predict.sh": "tests/distributed/test_scripts.py::test_predict",
    "bash scripts/run_distribute_train.sh DATASET": TRAINING + "test_train",
    "DEVICE_TARGET=CPU bash scripts/run_distribute_train.sh": "tests/distributed/test_scripts.py::test_train",
    "python train.py --dry_run --mode tiny --parallel.tensor 2": DRY_RUN + "test_every_kind_of_rank_is_as_planned",
    "python train.py --dry_run --mode tiny --parallel.tensor 2 --parallel.data 2 --parallel.optimizer_shard": DRY_RUN
    + "test_every_kind_of_rank_is_as_planned",
    "python train.py $HALF --mode tiny --parallel.tensor 2": DRY_RUN + "test_every_rank_of_eight_is_as_planned",
    "python train.py $HALF --mode tiny --model.num_layers 4 --parallel.pipeline 2 --parallel.virtual_stages 2 "
    "--parallel.micro_batch_num 4 --rank": DRY_RUN + "test_virtual_stages_are_as_planned",
    "python train.py $HALF --mode tiny --model.num_layers 4 --parallel.pipeline 2 --parallel.virtual_stages 2 "
    "--parallel.micro_batch_num 4 --parallel.pipeline_scheduler": DRY_RUN
    + "test_virtual_stages_of_eight_ranks_are_as_planned",
    "python -m src.preprocess --input_glob 'questions/": "tests/test_preprocess.py::"
    "test_finetune_mask_covers_completion_and_eot",
    "python train.py --mode tiny --model.compute_dtype bfloat16": "tests/cpu_kernels/test_half_products.py::"
    "test_training_goes_as_in_float32",
    "python train.py --mode tiny --data.train output/questions": "tests/training/test_run_folder.py::"
    "test_a_run_that_began_with_other_weights_goes_on_with_the_same_command",
    "python -m src.checkpoint.convert --from official": "tests/checkpoint/formats/test_official.py::"
    "test_512_files_of_a_known_model",
    "python -m src.checkpoint.convert --from mindspore --to megatron --checkpoint pangu_2.6B.ckpt": "tests/checkpoint/"
    "test_convert.py::test_there_and_back_are_the_same_bits",
    "bash scripts/run_distribute_predict.sh": SCRIPTS + "test_predict",
    "MINDFORMERS_PYTHON=": "tests/checkpoint/test_peers.py::peer_logits",
    "bash scripts/run_standalone_eval.sh STRATEGY TOKENIZER CKPT_PATH CKPT_NAME MODE CPU": SCRIPTS
    + "test_eval_on_one_device",
    "bash scripts/run_standalone_eval.sh STRATEGY TOKENIZER CKPT_PATH CKPT_NAME MODE DEVICE_TARGET": SCRIPTS
    + "test_eval_on_one_device",
    "bash scripts/run_distribute_eval.sh": SCRIPTS + "test_eval",
    "python eval.py --checkpoint output --task c3": "tests/evaluation/test_eval.py::test_the_command_line",
    "python eval.py --server": "tests/evaluation/test_server.py::test_a_server_says_what_a_model_says",
    "python predict.py --enable_client": "tests/evaluation/test_server.py::"
    "test_the_server_of_this_machine_is_asked_if_none_is_named",
    "python -m src.evaluation.lm_harness": "tests/evaluation/test_lm_harness.py::test_a_task_runs",
    "bash scripts/run_standalone_export.sh STRATEGY": SCRIPTS + "test_export",
    "bash scripts/run_standalone_export.sh none output/quickstart/run '' CPU c3": SCRIPTS + "test_export",
    "python export.py --checkpoint output/quickstart/run": "tests/inference/mindir/test_mindir.py::folder",
    "MODE='' RANK_SIZE=2 DEVICE_TARGET=CPU bash scripts/run_distribute_export.sh": SCRIPTS
    + "test_export_on_several_devices",
    "python -m serving_increment.flask.server --model device0": SERVERS + "test_the_page_shows_tokens_as_they_are_made",
    "python -m serving_increment.flask.server --model output/quickstart/run": PAGES,
    "python -m serving_increment.flask.server --model output/quickstart/int8": "tests/cpu/test_command_lines.py::"
    "test_the_server_takes_a_quantised_folder",
    "python -m serving_increment.flask.server --model pangu_2.6B_int8": "tests/cpu/test_command_lines.py::"
    "test_the_server_takes_a_quantised_folder",
    "python -m serving_increment.flask.server --backend serving": SERVING + "started",
    "bash serving_increment/start_pangu_standalone.sh": SERVING + "started",
    "curl -d": SERVERS + "test_serving_s_rest_grpc_and_page_know_the_answer",
    "bash serving_increment/stop_pangu.sh": SERVING + "started",
    "DEVICE_TARGET=CPU bash serving_increment/start_pangu_distributed.sh": "tests/serving_increment/"
    "test_distributed.py::started",
    "python -m src.cpu.quantize --checkpoint output/2.6B": "tests/cpu/test_command_lines.py::"
    "test_quantising_says_what_it_wrote",
    'python pangu_inference.py -p "请简单介绍一下盘古"': "tests/cpu/test_command_lines.py::"
    "test_the_original_s_command_gives_both_backends_the_same_text",
    "bash scripts/setup_env.sh vllm": "tests/ports/vllm/conftest.py::vllm_environment",
    ".venv-vllm/bin/vllm serve output/quickstart/hf --served": "tests/ports/vllm/test_vllm_tokens.py::planned",
    ".venv-vllm/bin/vllm serve output/quickstart/hf --structured": "tests/ports/vllm/conftest.py::server",
    "python -m benchmarks.vllm_load": "tests/ports/vllm/test_vllm_load.py::test_both_servers_are_measured",
    "python -m benchmarks.serving_soak --model": SOAK,
    "python -m benchmarks.serving_soak --server chat": SOAK,
    "python -m benchmarks.serving_soak --server serving": SOAK,
    "bash scripts/setup_env.sh huggingface": "tests/conftest.py::huggingface_python",
    ".venv-huggingface/bin/python -m ports.huggingface.generate --load": GENERATE,
    ".venv-huggingface/bin/python -m ports.huggingface.generate --model-parallel-size": GENERATE,
    ".venv-huggingface/bin/python -m ports.huggingface.train --load": TRAIN + "test_lora",
    ".venv-huggingface/bin/torchrun --nproc_per_node 4 -m ports.huggingface.train": TRAIN
    + "test_losses_are_those_of_one_process",
    "bash examples/finetune_pangu_distributed.sh LOAD": TRAIN + "test_the_examples_start_it",
    "bash examples/pretrain_pangu_distributed_2.6B.sh VOCAB_FILE": TRAIN + "test_the_examples_start_it",
    "bash scripts/setup_env.sh mindformers": "tests/ports/mindformers/conftest.py::mindformers_python",
    "$PLUGIN train": MINDFORMERS + "test_train_finetune_evaluate_and_predict",
    "$PLUGIN finetune": MINDFORMERS + "test_train_finetune_evaluate_and_predict",
    "$PLUGIN eval": MINDFORMERS + "test_train_finetune_evaluate_and_predict",
    "$PLUGIN predict": MINDFORMERS + "test_train_finetune_evaluate_and_predict",
    "DEVICE_TARGET=CPU bash scripts/run_distribute.sh none": MINDFORMERS + "test_two_processes_have_the_losses_of_one",
    "python web/run_gradio_web.py": PAGES,
    "python web/run_gradio_web.py --model output/2.6B": PAGES,
    "python web/run_pangu_bot.py": PAGES,
    "python web/run_pangu_bot.py --model output/quickstart/run": PAGES,
    "python web/run_pangu_bot.py --model device0": PAGES,
    "python web/run_pangu_bot.py --api_base": "tests/web/test_pages_and_servers.py::test_a_server_in_another_process",
    "python pangu_inference_online.py --api_base http://HOST:5000/v1": ONLINE + "test_the_command_line",
    "python pangu_inference_online.py --api_base http://127.0.0.1:5000/v1": ONLINE + "test_the_program",
    "python pangu_inference_online.py --api_base http://127.0.0.1:5000/v1 --model": ONLINE + "test_the_command_line",
    "python pangu_inference_online.py --api_base http://127.0.0.1:5000/v1 --prompt": ONLINE + "test_the_command_line",
}

COPIES, MINUTES = "copies the user's files into the repository", "compiles a released size, which takes minutes"
# Not run by any test.
NOT_RUN = {
    "bash scripts/run_tests.sh": "runs the tests themselves",
    "bash scripts/get_tokenizer.sh": "downloads a package",
    "pip install ./ports/vllm": "needs a GPU",
    "vllm serve pangu_2.6B_hf": "needs a GPU",
    "vllm bench latency --model pangu_2.6B_hf --load-format dummy --dtype bfloat16 --batch-size 1 --input-len 512 "
    "--output-len 1": "needs a GPU",
    "vllm bench latency --model pangu_2.6B_hf --load-format dummy --dtype bfloat16 --batch-size 1 --input-len 512 "
    "--output-len 256": "needs a GPU",
    ".venv/bin/python -m pip install": "downloads packages",
    'python -m src.parallel.hccl_tools --device_num "[0,8)"': "needs an Atlas machine",
    "export PANGU_MODEL": "sets variables for the next commands",
    "HALF=": "sets a variable for the next commands",
    "PLUGIN=": "sets a variable for the next commands",
    "VOCABULARY=": "sets a variable for the next commands",
    ".venv-mindformers/bin/python -m ports.mindformers.run_mindformer --config configs/pangualpha/"
    "run_pangualpha_2_6b.yaml --dry_run": MINUTES,
    "mkdir -p serving_increment/pangu_standalone": COPIES,
    "mv device0/*": COPIES,
    "cp output/quickstart/tokenizer/vocab.model serving_increment/pangu_standalone": COPIES,
    "mkdir -p serving_increment/pangu_distributed": COPIES,
    "mv device0 device1": COPIES,
    "cp output/quickstart/tokenizer/vocab.model serving_increment/pangu_distributed": COPIES,
    "python train.py $HALF --mode 2.6B": MINUTES,
    "python predict.py --dry_run --mode 2.6B": MINUTES,
    "python train.py --dry_run --mode 2.6B": MINUTES,
    "python train.py $HALF --mode 13B": MINUTES,
    "python train.py $HALF --mode 200B": MINUTES,
    "python train.py $HALF --mode 60B-moe": MINUTES,
    "python predict.py $HALF --mode 2.6B": "compiles a released size: 30 s and 900 MiB",
}
