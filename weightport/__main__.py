"""``python -m weightport``: the ``weightport`` command."""

from weightport.cli import main

if __name__ == "__main__":
    main()
