#!/bin/bash
# Start MindSpore Serving (gRPC 5500, REST 1500) with a model in slices on several devices, and the page (port 5000).
#
# usage: bash serving_increment/start_pangu_distributed.sh            on the first machine
#        bash serving_increment/start_pangu_distributed.sh agent      on each other machine, for its ranks
#
# run_distribute_export.sh or run_cluster_export.sh writes the slices. They must lie in pangu_distributed/models/device0,
# device1, ... The first machine also needs the vocab.model in pangu_distributed/pangu/tokenizer.
# Environment variables:
#   DEVICE_TARGET        Ascend (default), GPU or CPU
#   RANK_TABLE           rank table; default: pangu_distributed/hccl_*p.json if it exists
#   DISTRIBUTED_ADDRESS  address and port of the first machine, for several machines; default: 127.0.0.1:6200
#   DISTRIBUTED_KEY      a secret of your own, the same on all machines; needed for several machines
#   RANK_START, LOCAL_DEVICE_NUM, MS_SCHED_HOST, MS_SCHED_PORT   for several machines without a rank table
#   PANGU_MODELS         another place for the slices
#   PANGU_TOKENIZER, PANGU_HOST, GRPC_PORT, REST_PORT, PAGE_PORT, PANGU_RUN, PANGU_API_KEY,
#   PANGU_ALLOWED_HOSTS, PANGU_ALLOWED_ORIGINS   as for start_pangu_standalone.sh; more logs are serving_agent.log and
#                        device*/log*.log
. "$(dirname "$0")/common.sh"
[ $# -eq 0 ] || [ "$*" = agent ] || usage "bash serving_increment/start_pangu_distributed.sh [agent]"
folder=$SERVING/pangu_distributed
models=${PANGU_MODELS:-$folder/models}
if [ $# -eq 0 ] && [[ ${DISTRIBUTED_ADDRESS:-127.} == 127.* ]]; then
    export DISTRIBUTED_KEY=${DISTRIBUTED_KEY:-$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')}
fi
of_rank_0=$models/device_0  # as the ModelZoo's documents name it
[ -d "$of_rank_0" ] || of_rank_0=$models/device0
[ $# -gt 0 ] || check_places "$of_rank_0" "${PANGU_TOKENIZER:-$folder/pangu/tokenizer}"
begin
in_background "$ROOT" serving_agent.log "$VENV_PYTHON" "$folder/serving_agent.py" --models "$(realpath "$models")" \
    ${RANK_TABLE:+--rank_table "$(realpath "$RANK_TABLE")"} ${RANK_START:+--rank_start "$RANK_START"} \
    ${LOCAL_DEVICE_NUM:+--local_device_num "$LOCAL_DEVICE_NUM"} --device_target "$DEVICE_TARGET" \
    ${MS_SCHED_HOST:+--scheduler_address "$MS_SCHED_HOST"} ${MS_SCHED_PORT:+--scheduler_port "$MS_SCHED_PORT"} \
    --log_dir "$PANGU_RUN"
watch $! serving_agent.log
if [ $# -eq 0 ]; then
    serve pangu_distributed
else
    echo "this machine's ranks start; see $PANGU_RUN/serving_agent.log"
fi
