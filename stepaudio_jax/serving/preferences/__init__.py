"""People's preferences: comparisons, who is shown which, verdicts, and the records made of them.

Read `study` first (what a folder holds), then `store` (how a verdict gets there) and `records`.
"""
