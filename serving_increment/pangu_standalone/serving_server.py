"""MindSpore Serving's master for a model on one device. start_pangu_standalone.sh starts it."""

from pathlib import Path

from serving_increment.front import run_master

if __name__ == "__main__":
    run_master(Path(__file__).resolve().parent, model="pangu/1")
