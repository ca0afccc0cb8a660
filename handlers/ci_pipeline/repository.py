"""A git repository of five commits to try the pipeline on: `python -m handlers.ci_pipeline.repository FOLDER`.

Prints each commit as a line for `choreo publish --file -`.
"""

import subprocess
import sys
from pathlib import Path

from .events import CommitPushed

PRICE = "def price(cents, pieces):\n    return cents * pieces\n"
MAIN = "from price import price\n\nprint(price(250, 4))\n"
TEST = """import sys
import unittest

sys.path.insert(0, "shop")
from price import price


class PriceTest(unittest.TestCase):
    def test_price(self):
        self.assertEqual(price(250, 4), %d)
"""
COMMITS: tuple[tuple[str, dict[str, str]], ...] = (
    (
        "a shop with a price",
        {
            "shop/price.py": PRICE,
            "shop/__main__.py": MAIN,
            "tests/__init__.py": "",
            "tests/test_price.py": TEST % 1000,
        },
    ),
    ("a discount that is none", {"shop/price.py": PRICE.replace("cents * pieces", "cents * pieces - 1")}),
    (
        "a discount for ten and more",
        {"shop/price.py": PRICE.replace("pieces\n", "pieces * (9 if pieces > 9 else 10) // 10\n")},
    ),
    ("half a line", {"shop/rebate.py": "def rebate(:\n"}),
    ("no rebate after all", {"shop/rebate.py": "def rebate():\n    return 0\n"}),
)
"""Message and files. The second fails its tests, the fourth does not compile."""


def make(folder: Path) -> list[CommitPushed]:
    """Make it in an empty folder; its commits, the oldest first."""

    def git(*arguments: str) -> str:
        who = ("-c", "user.name=ann", "-c", "user.email=ann@example.com", "-c", "commit.gpgsign=false")
        done = subprocess.run(
            ("git", "-C", str(folder), *who, *arguments), capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    folder.mkdir(parents=True, exist_ok=True)
    git("init", "--quiet")
    commits = []
    for message, files in COMMITS:
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        git("add", ".")
        git("commit", "--quiet", "-m", message)
        commits.append(CommitPushed(sha=git("rev-parse", "HEAD"), repository=str(folder.absolute()), message=message))
    return commits


if __name__ == "__main__":
    for each in make(Path(sys.argv[1])):
        print(each.payload().decode())
