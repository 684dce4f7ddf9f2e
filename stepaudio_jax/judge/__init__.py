"""The judge: compares replies, and reads verdicts; used by RL, evaluation and serving."""
