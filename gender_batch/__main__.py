"""`python -m gender_batch`: the same as the installed command."""

from gender_batch.cli import main

if __name__ == "__main__":
    main()
