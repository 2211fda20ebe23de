"""`python -m sparsetime` is the command line."""

from sparsetime.cli import main

if __name__ == "__main__":
    main()
