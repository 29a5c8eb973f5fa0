"""Takes the README's pictures of TensorBoard.

python -m tests.browser.screenshots runs/demo docs
"""

from __future__ import annotations

import argparse
from pathlib import Path

from growclip_ds.run.folder import RunFolder
from tests.browser.board import Board, find_chromium, open_browser, serve

# By tab: height of the picture in pixels, and what is shown, in the order of the page.
PICTURES = {
    "scalars": (768, ("phase/growth_step", "phase/number", "train/loss", "zero_shot/scenes_objects")),
    "images": (572, ("architecture/model", "selection/candidates")),
    "text": (660, ("selection/candidates/text_summary",)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's folder")
    parser.add_argument("pictures", type=Path, help="the folder to write the PNGs to")
    options = parser.parse_args()
    program = find_chromium()
    if program is None:
        parser.error("Chromium is not installed")
    with serve(RunFolder(options.run).tensorboard) as address, open_browser(program) as browser:
        for tab, (height, tags) in PICTURES.items():
            board = Board(browser, address, tab, *tags, height=height)
            for tag in tags:
                if tab == "images":
                    board.picture(tag)
                elif tab == "scalars":
                    board.wait_for_curve(tag)
            board.page.screenshot(path=options.pictures / f"tensorboard_{tab}.png")


if __name__ == "__main__":
    main()
