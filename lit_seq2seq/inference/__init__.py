"""A network with its vocabulary, and what it is used for."""
