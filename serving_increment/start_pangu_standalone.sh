#!/bin/bash
# Start MindSpore Serving (gRPC 5500, REST 1500) with a model on one device, and the page (port 5000) over it.
#
# usage: bash serving_increment/start_pangu_standalone.sh
#
# run_standalone_export.sh writes the model. It must lie in pangu_standalone/pangu/1, and its vocab.model in
# pangu_standalone/pangu/tokenizer. Environment variables:
#   PANGU_MODEL, PANGU_TOKENIZER      other places for them
#   PANGU_HOST                        address to listen on; default: 127.0.0.1; 0.0.0.0 for every network
#   GRPC_PORT, REST_PORT, PAGE_PORT   other ports
#   PANGU_RUN                         folder for serving_server.log, serving_logs and flask.log; default: this folder
#   PANGU_API_KEY                     API key of the page and of REST; gRPC then listens on this machine only
#   PANGU_ALLOWED_HOSTS               names of this machine for clients, besides localhost and IP addresses
#   PANGU_ALLOWED_ORIGINS             sites whose pages may ask the API, such as https://example.org
. "$(dirname "$0")/common.sh"
[ $# -eq 0 ] || usage "bash serving_increment/start_pangu_standalone.sh"
folder=$SERVING/pangu_standalone
check_places "${PANGU_MODEL:-$folder/pangu/1}" "${PANGU_TOKENIZER:-$folder/pangu/tokenizer}"
begin
serve pangu_standalone
