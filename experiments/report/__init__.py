"""`jaxleak report`: one page of any number of run folders, of attacks, sweeps and training."""
