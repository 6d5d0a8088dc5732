"""`python -m luthier` is `luthier`; `torchrun -m luthier` is what several processes of it are started with."""

from luthier.cli.main import main

if __name__ == "__main__":
    main()
