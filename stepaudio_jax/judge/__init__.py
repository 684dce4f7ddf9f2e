"""A generative judge that compares replies; used by RL, evaluation and serving."""
