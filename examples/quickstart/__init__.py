"""The quickstart: a small base model, made from nothing, learns to answer spoken questions."""
