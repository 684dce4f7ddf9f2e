"""The quickstart: a small base model made from nothing, which then learns to answer spoken questions."""
