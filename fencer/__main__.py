"""``python -m fencer``: the same as the ``fencer`` command."""

from fencer.cli import main

if __name__ == "__main__":
    main()
