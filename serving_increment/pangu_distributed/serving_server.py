"""MindSpore Serving's master for a model in slices, whose ranks serving_agent.py starts. start_pangu_distributed.sh
starts both."""

from pathlib import Path

from serving_increment.front import run_master

if __name__ == "__main__":
    run_master(Path(__file__).resolve().parent, model="models/device0")
