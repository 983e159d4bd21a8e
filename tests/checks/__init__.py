"""Checks of the project's own rules: pure functions from a source tree to a list of `file:line: what; what to do`."""
