"""`jaxleak audit`: how much leaks of an update of one's own, from one's own model."""
