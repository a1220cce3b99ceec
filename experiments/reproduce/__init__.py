"""`jaxleak reproduce`: the studies of the papers, what they came to, and the page of all of them."""
