"""`python -m toolchain`, which is what `accelerate launch -m toolchain train` runs."""

from toolchain.cli import main

if __name__ == "__main__":
    main()
