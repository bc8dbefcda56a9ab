"""What can be trained: network definitions, corpora and recipes; imported as `toolchain.models`."""
