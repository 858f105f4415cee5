#!/bin/bash
# Answers the commands of older systems whose scripts are not here. Links with the scripts' old names lead to this file.
# docs/migration.md lists the commands of all older systems beside their equals.
name=$(basename "$0")
case $name in
    run_standalone.sh)
        equal="bash scripts/run_standalone_train.sh DATASET fp32 2.6B PER_BATCH DEVICE_TARGET [--training.init_checkpoint \
FILE], run_standalone_eval.sh or run_standalone_predict.sh" ;;
    run_distribute.sh)
        equal="bash scripts/run_distribute_train.sh DATASET RANK_TABLE RANK_SIZE TYPE MODE STAGE_NUM MICRO_SIZE PER_BATCH \
RANK_START LOCAL_DEVICE_NUM [--training.init_checkpoint FILE]" ;;
esac
echo "error: $name is a script of an older system; here it is \`$equal\` (docs/migration.md)" >&2
exit 2
