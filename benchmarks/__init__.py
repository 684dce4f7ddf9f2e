"""Speed and memory, always side by side with the peer."""
