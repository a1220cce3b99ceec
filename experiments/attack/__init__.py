"""`jaxleak attack`: a scenario, its attack, and what it leaves: rows, arrays, a table, a picture, a report."""
