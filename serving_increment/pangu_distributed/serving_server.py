"""MindSpore Serving's master for a model in slices. serving_agent.py starts the ranks.

start_pangu_distributed.sh starts both programs.
"""

from pathlib import Path

from serving_increment.front import run_master

if __name__ == "__main__":
    run_master(Path(__file__).resolve().parent, model="models/device0")
