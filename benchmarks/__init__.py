"""Speed of this package beside plain PyTorch and beside its peers; `make bench`."""
