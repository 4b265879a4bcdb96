"""``python -m upop``: the command line where its script is not on the PATH, and for torchrun."""

from upop.cli import main

if __name__ == "__main__":
    main()
