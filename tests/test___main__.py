"""``python -m upop`` is the command line."""

import subprocess
import sys

from upop import __version__


def test_it_is_the_command_line():
    ran = subprocess.run([sys.executable, "-m", "upop", "--version"], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, f"upop {__version__}\n")
