"""Speed and memory beside PyTorch: `jaxleak bench`."""
