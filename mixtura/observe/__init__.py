"""Look inside: what was routed where, metrics of it, and the report."""
