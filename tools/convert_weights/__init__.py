"""Hugging Face <-> Orbax, from the command line."""
