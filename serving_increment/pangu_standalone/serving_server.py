"""MindSpore Serving's master for the servable `pangu`, with gRPC and REST. start_pangu_standalone.sh starts it."""

from pathlib import Path

from mindspore_serving import server

from serving_increment.front import serve
from serving_increment.servable import check_model
from src.errors import run_program

SERVABLES = Path(__file__).resolve().parent


def main() -> None:
    """Check the model, start the worker, listen until the signal to end."""
    check_model(str(SERVABLES / "pangu" / "servable_config.py"))
    serve(lambda: server.start_servables(server.ServableStartConfig(str(SERVABLES), "pangu", device_ids=(0,))))


if __name__ == "__main__":
    run_program(main)
