"""The verifiable reward trap in miniature, and RLHF as the way out."""
