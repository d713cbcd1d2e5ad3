"""`python -m tests.readmes`: lists every block of every Markdown file, and what a test does with it."""

from __future__ import annotations

import sys
from collections import Counter

from .blocks import CHECKED, EXECUTED_BY, blocks_of, markdown_files


def main() -> None:
    counted: Counter[str] = Counter()
    for file in markdown_files():
        for block in blocks_of(file):
            counted[block.way] += 1
            reason = block.notes.get(CHECKED) or block.notes.get(EXECUTED_BY, "")
            sys.stdout.write(f"{block.place:45} {block.language:10} {block.way:8} {reason}".rstrip() + "\n")
    sys.stdout.write(", ".join(f"{number} blocks {way}" for way, number in sorted(counted.items())) + "\n")


if __name__ == "__main__":
    main()
