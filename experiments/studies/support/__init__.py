"""What studies have in common: cells, rows, verdicts, plots."""
