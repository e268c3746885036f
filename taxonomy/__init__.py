"""What is known of resource-efficient deep learning, as data: techniques, influences, measurements, papers.

>>> import taxonomy
>>> tx = taxonomy.load()
>>> "posit" in tx
True

Loading takes well under half a second and imports neither torch, numba nor pandas.
"""

from taxonomy.load import TaxonomyError, load

__all__ = ["TaxonomyError", "load"]
