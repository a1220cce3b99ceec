"""Training of generators of images, for attacks that search their codes."""
