"""Studies: a module each, which puts a paper's figure beside ours."""
