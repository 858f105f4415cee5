"""The page that continues a text: `python web/run_gradio_web.py --model output/quickstart/run`."""

import sys
from pathlib import Path


def main() -> None:
    """Serve the page."""
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in place of this file's folder, which Python puts there
    from src.common.errors import run_program
    from web.launch import open_page

    run_program(lambda: open_page("text", "web/run_gradio_web.py"))


if __name__ == "__main__":
    main()
