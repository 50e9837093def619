"""Measurements behind the README's claims. `python -m benchmarks NAME ...` runs some, `make bench` the quick ones."""
