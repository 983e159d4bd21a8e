"""The tests; folders and files mirror `mixtura/`."""
