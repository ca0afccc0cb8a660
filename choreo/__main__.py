"""`python -m choreo`, the same as the command `choreo`."""

from choreo.cli import main

if __name__ == "__main__":
    main(prog_name="choreo")
