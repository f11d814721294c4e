"""The tests mirror src/evenkeel; tests/virtual boots real kernels."""
