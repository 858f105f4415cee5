"""The commands that the documents of five older systems print, and what each gets here.

tests/test_migration.py types them, and compares them with the tables of docs/migration.md. `scripts$ COMMAND` is typed
in the folder scripts.
"""

CKPTS = "${FILE_PATH}/strategy_load_ckpt/strategy.ckpt"
TOKENIZER, FILES = "${FILE_PATH}/tokenizer/", "${FILE_PATH}/checkpoint_file"
NETWORK = "--num-layers 31 --hidden-size 2560"
# In this project's own environment. tests/ports/mindformers runs them in that of MindFormers.
MISSING = "MindFormers is not installed in this environment: `bash scripts/setup_env.sh mindformers` makes one"
NO_ENVIRONMENT = "no environment with MindFormers: `bash scripts/setup_env.sh mindformers` makes one"

# One line, `error: ...`, with these words, and status 2.
ANSWERED = {
    # pangu-ax
    "python pangu_infernce.py": "--checkpoint is not given: with onnx-cpu, a folder that `python -m src.cpu.quantize`",
    'python pangu_infernce.py -p "请简单介绍一下盘古" -m "2B6" -c "ckpts/pretrained/onnx_int8_pangu_alpha_2b6/" '
    '-b "onnx-cpu" -k 1': "holds ONNX files of another tool, which are not read here: quantise the checkpoint",
    "python web/run_gradio_web.py": "give --model FOLDER, or --api_base ADDRESS",
    "python web/run_pangu_bot.py": "give --model FOLDER, or --api_base ADDRESS",
    # ModelZoo
    "python -m src.preprocess --input_glob 'data/*.txt' --tokenizer gpt --eot 50256 --data_column_name input_ids "
    "--seq_length 1025": "--model_file is not given: vocabulary of the tokenizer",
    "bash scripts/run_distributed_train_gpu.sh RANK_SIZE HOSTFILE DATASET PER_BATCH MOD": "RANK_SIZE 'RANK_SIZE' "
    "is not",
    "serving_increment$ bash start_pangu_standalone.sh": "holds no exported model (model.json)",
    "serving_increment$ bash start_pangu_Standone.sh": "holds no exported model (model.json)",
    "serving_increment$ bash start_pangu_distributed.sh": "holds no exported model (model.json)",
    "serving_increment$ python pangu_distributed/serving_agent.py": "DISTRIBUTED_KEY is not given",
    "serving_increment/pangu_distributed$ python serving_agent.py": "DISTRIBUTED_KEY is not given",
    'python3 models/utils/hccl_tools/hccl_tools.py --device_num "[0,8]"': '"[0,8)" for devices 0 to 7',
    "python train.py --data_column_name your_feature_name": "did you mean '--data.column'?",
    "python train.py --hccl_connect_time 1200": "set HCCL_CONNECT_TIMEOUT in the environment",
    # MindFormers
    'python ./mindformers/tools/hccl_tools.py --device_num "[0,8)"': "/etc/hccn.conf can't be read",
    'python ./mindformers/tools/hccl_tools.py --device_num "[0,8)" --server_ip xx.xx.xx.xx': "/etc/hccn.conf can't be",
    "python mindformers/models/pangualpha/convert_weight.py --config_path_or_name path/to/config "
    "--official_strategy_path "
    "path/to/pangu_alpha_13B_cktp_strategy.ckpt --official_ckpt_dir path/to/512ckpt --official_npy_dir "
    "path/to/embedding_dir --ckpt_save_path path/to/pangualpha.ckpt": "none of pangualpha_tiny",
    "mindformers/tools/dataset_preprocess/pangualpha$ python pretrain_data_process.py --input_glob 'data/*.txt' "
    "--tokenizer jieba --eot 40000 --data_column_name input_ids --seq_length 1025": "no vocabulary at "
    "checkpoint_download/pangualpha/vocab.model",
    "mindformers/tools/dataset_preprocess/pangualpha$ python tnews_data_process.py --input_file dev.json --label_file "
    "labels.json --output_file tnews.mindrecord": "--label_file labels.json is not there",
    "mindformers/tools/dataset_preprocess/pangualpha$ python cmrc2018_data_process.py --train_file train.json "
    "--dev_file "
    "dev.json --output_file cmrc2018.mindrecord": "dev.json is not there",
    "python run_mindformer.py --config configs/pangualpha/run_pangualpha_2_6b.yaml --run_mode train --use_parallel "
    "False": MISSING,
    "python run_mindformer.py --config configs/pangualpha/run_pangualpha_2_6b.yaml --run_mode finetune": MISSING,
    "python run_mindformer.py --config configs/pangualpha/run_pangualpha_2_6b_prompt_txtcls.yaml --eval_dataset_dir "
    "tnews.mindrecord --run_mode eval": MISSING,
    "python run_mindformer.py --config configs/pangualpha/run_pangualpha_2_6b.yaml --run_mode predict --predict_data "
    "上联：欢天喜地度佳节 下联： --use_parallel False": MISSING,
    "scripts$ bash run_standalone.sh ../configs/pangualpha/run_pangualpha_2_6b.yaml 0 train": NO_ENVIRONMENT,
    "scripts$ bash run_standalone.sh ../configs/pangualpha/run_pangualpha_2_6b.yaml 0 finetune": NO_ENVIRONMENT,
    "scripts$ bash run_distribute.sh RANK_TABLE_FILE ../configs/pangualpha/run_pangualpha_2_6b.yaml [0,8] train "
    "8": NO_ENVIRONMENT,
    "scripts$ bash run_distribute.sh RANK_TABLE_FILE ../configs/pangualpha/run_pangualpha_2_6b.yaml [0,8] finetune "
    "8": NO_ENVIRONMENT,
    # The GPU port
    "python run_inference.py --model=2B6 --load_ckpt_path=/xxx/PanguAlpha_2_6b.ckpt": "PanguAlpha_2_6b.ckpt",
    # The PyTorch port
    f"python tool/generate_samples_Pangu.py --model-parallel-size 1 {NETWORK} --load DIR --num-attention-heads 32 "
    "--max-position-embeddings 1024 --tokenizer-type GPT2BPETokenizer --fp16 --batch-size 1 --seq-length 1024 "
    "--out-seq-length 50 --temperature 1.0 --vocab-file megatron/tokenizer/bpe_4w_pcl/vocab --num-samples 0 --top_k 10 "
    "--finetune": "--from megatron --to mindspore",
    f"python tools/split_full_model_into_mp_model.py --model-parallel-size 1 --num-mp-model 2 {NETWORK} --load DIR "
    "--mp-model-save DIR --num-attention-heads 32 --max-position-embeddings 1024 --tokenizer-type "
    "GPT2BPETokenizer --fp16 "
    "--batch-size 1 --seq-length 1024 --model-type Pangu --vocab-file megatron/tokenizer/bpe_4w_pcl/vocab "
    "--finetune": "--parts 2",
    "bash examples/finetune_pangu_distributed.sh": "LOAD SAVE DATA_PATH [flags of ports.huggingface.train]",
    f"python tool/merge_mp_partitions.py --model-parallel-size 1 --mp-model-parallel-size 2 {NETWORK} --load DIR "
    "--num-attention-heads 32 --max-position-embeddings 1024 --tokenizer-type GPT2BPETokenizer --fp16 --batch-size 1 "
    "--seq-length 1024 --model-type Pangu --vocab-file megatron/tokenizer/bpe_4w_pcl/vocab --finetune": "--parts 1",
    "bash examples/pretrain_gpt2_distributed_2.6B.sh": "VOCAB_FILE SAVE DATA_PATH [flags of ports.huggingface.train]",
    "python preprocess_data.py": "python -m src.preprocess",
}

# The script takes the arguments and starts this program with these flags, among others.
STARTS = {
    "bash scripts/run_distribute_train.sh /data/pangu_30_step_ba64/ /path/hccl_8p.json 8 fp32 2.6B 1 1 8 0 8": (
        "train.py --mode 2.6B --data.train /data/pangu_30_step_ba64/"
    ),
    "bash scripts/run_distribute_train.sh /path/dataset /path/hccl.json 8 fp32 2.6B 1 1 8 0 8": "train.py --mode 2.6B",
    "bash scripts/run_distribute_train.sh /path/dataset /path/hccl.json 16 fp32 2.6B 2 4 16 0 8": "pipeline 2",
    "bash scripts/run_distribute_train.sh /path/dataset /path/hccl.json 16 fp32 2.6B 2 4 16 8 8": "--rank_start 8",
    "scripts$ bash run_distributed_train_moe_host_device.sh /path/dataset /path/hccl.json 8 fp32 2.6B 1 1 2 0 8 36 0": (
        "--model.num_experts 36 --model.expert_interval 1 --parallel.expert 1 --parallel.optimizer_offload true"
    ),
    f"bash scripts/run_distribute_incremental_train.sh DATASET RANK_TABLE 8 fp32 2.6B 8 {CKPTS} {FILES} filitered": (
        "--checkpoint ckpts/checkpoint_file --checkpoint_name filitered"
    ),
    f"bash scripts/run_distribute_predict.sh 8 /home/config/rank_table_8p.json {CKPTS} {TOKENIZER} {FILES} "
    "filitered 2.6B "
    "fp32": "predict.py --mode 2.6B --data.tokenizer_path ckpts/tokenizer/",
    f"bash scripts/run_standalone_predict.sh {CKPTS} {TOKENIZER} {FILES} filitered 2.6B $DEVICE_TARGET": (
        "predict.py --mode 2.6B --data.tokenizer_path ckpts/tokenizer/"
    ),
    f"bash scripts/run_standalone_eval.sh {CKPTS} {TOKENIZER} {FILES} filitered 2.6B $DEVICE_TARGET $TASK $TASK_PATH": (
        "--parallel.device_target Ascend --task c3 --task_path /home/your_c3_data_path"
    ),
    f"bash scripts/run_distribute_eval.sh 8 $RANK_TABLE {CKPTS} {TOKENIZER} {FILES} 13B fp32 $TASK $TASK_PATH": (
        "eval.py --mode 13B --data.tokenizer_path ckpts/tokenizer/"
    ),
    f"bash scripts/run_standalone_export.sh {CKPTS} {FILES} 2.6B ${{DEVICE_TARGET}} $TASK": (
        "--output device0 --parallel.device_target Ascend --task c3"
    ),
    "scripts$ bash run_standalone_export.sh ${strategy_file_path} ${ckpt_dir_path} 2.6B Ascend": "export.py "
    "--mode 2.6B",
    "scripts$ bash run_distribute_export.sh ${strategy_file_path} ${ckpt_dir_path}": "export.py --mode 13B",
    "scripts$ bash run_cluster_export.sh ${strategy_file_path} ${ckpt_dir_path} ${rank_table_file} ${rank_size} "
    "${rank_start}": "--rank_start 8 --local_device_num 8",
}
# Commands that follow an export by the same user, in this order.
MOVES = {
    "scripts$ bash run_standalone_export.sh ${strategy_file_path} ${ckpt_dir_path} 2.6B Ascend": [
        "scripts$ ls device_0",
        "mkdir serving_increment/pangu_standalone/pangu/1/",
        "mv scripts/device_0/* serving_increment/pangu_standalone/pangu/1/",
    ],
    f"bash scripts/run_standalone_export.sh {CKPTS} {FILES} 2.6B ${{DEVICE_TARGET}} $TASK": [
        "mkdir -p serving_increment/pangu_standalone/pangu/1/",
        "mv device0/* serving_increment/pangu_standalone/pangu/1/",
    ],
    "scripts$ bash run_distribute_export.sh ${strategy_file_path} ${ckpt_dir_path}": [
        "mkdir serving_increment/pangu_distributed/models/",
        "mv scripts/device_* serving_increment/pangu_distributed/models/",
    ],
}

# It runs to its end, with status 0, and prints this.
RUNS = {
    "python -m src.preprocess --input_glob data/*.txt --tokenizer jieba --model_file vocab.model --eot 6": (
        "./output/pangu.mindrecord: "
    ),
    "serving_increment$ bash stop_pangu.sh": "nothing was started",
    "python ./mindformers/tools/merge_hccl.py hccl*.json": "written: hccl_2s_16p.json",
}

# Another test runs it, with a model and data.
ELSEWHERE = {
    "python pangu_infernce_online.py": "tests/serving/test_openai_client.py::test_the_command_line",
    "python predict.py --enable_client --eval_task=$EVAL_TASK --tokenizer_path=$TOKENIZER_PATH "
    "--eval_data_url=$EVAL_DATA_URL": "tests/evaluation/test_server.py::"
    "test_the_server_of_this_machine_is_asked_if_none_is_named",
    "python run_inference.py --model=13B_fp16 --load_ckpt_path=/xxx/PanguAlpha_13b_fp16.ckpt": "tests/cpu/"
    "test_command_lines.py::test_the_gpu_port_s_command",
    "python run_inference.py --model=2B6_fp16 --load_ckpt_path=/xxx/PanguAlpha_2_6b.ckpt": "tests/cpu/"
    "test_command_lines.py::test_the_gpu_port_s_command",
}

# Not typed: it concerns other projects' programs, or files that the document tells its reader to write.
FOREIGN = {
    "conda create -n mindspore python=3.8",
    "pip install -r requirements.txt",
    "sudo ln -s your/download/ckpts ckpts/pretrained",
    "git clone https://gitee.com/mindspore/models.git -b master",
    "python setup.py install",
    "docker pull yands/mindspore_pangu-alpha:1.2.0",
    "docker pull nvcr.io/nvidia/pytorch:20.03-py3",
    "pip install sentencepiece==0.1.94",
    "python predict_custom.py",
    "bash run_predict.sh RANK_TABLE_FILE path/to/pangualpha_2_6b_shard_checkpoint_dir",
}
