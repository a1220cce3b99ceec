"""`jaxleak sweep`: every cell of a grid, with as few compiled programs as there can be, resumable anywhere.

In Python: `jaxleak.experiments.sweep.running.run(Study(attack=[...], defense=[...]), "my-sweep")`.
"""

from jaxleak.experiments.sweep.study import Study, load

__all__ = ["Study", "load"]
