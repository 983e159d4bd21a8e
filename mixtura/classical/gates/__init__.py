"""Gates: who is asked where. One file per family."""
