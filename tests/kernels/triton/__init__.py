"""The Triton kernels, run by Triton's interpreter and compiled for a GPU that is not there."""
