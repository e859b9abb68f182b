"""`python -m palpate` is `palpate`."""

from palpate.cli import main

if __name__ == "__main__":
    main()
