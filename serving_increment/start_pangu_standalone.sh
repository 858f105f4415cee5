#!/bin/bash
# Start MindSpore Serving (gRPC 5500, REST 1500) with a model on one device, and the page (port 5000) before it.
#
# usage: bash serving_increment/start_pangu_standalone.sh
#
# The model is what run_standalone_export.sh wrote, in pangu_standalone/pangu/1, and its vocab.model in
# pangu_standalone/pangu/tokenizer. In the environment: PANGU_MODEL and PANGU_TOKENIZER are other places for them,
# PANGU_HOST the address to listen on (127.0.0.1; 0.0.0.0 for every network), GRPC_PORT, REST_PORT, PAGE_PORT,
# PANGU_RUN a folder for logs (this one: serving_server.log, serving_logs, flask.log), PANGU_API_KEY the page's key.
. "$(dirname "$0")/common.sh"
[ $# -eq 0 ] || usage "bash serving_increment/start_pangu_standalone.sh"
folder=$SERVING/pangu_standalone
check_places "${PANGU_MODEL:-$folder/pangu/1}" "${PANGU_TOKENIZER:-$folder/pangu/tokenizer}"
begin
serve "$folder"
