"""One file per question; results as JSON with machine and versions; the README's tables are made from them."""
