"""The command line, data, and studies that put papers beside what the library finds."""
