"""Tasks that operators are measured on, one kind a file; a setting's keys say which it is."""

from taxonomy.measure.tasks.attention import Attention
from taxonomy.measure.tasks.circuit import Circuit
from taxonomy.measure.tasks.convolution import Convolution
from taxonomy.measure.tasks.product import Product
from taxonomy.measure.tasks.solve import Solve
from taxonomy.measure.tasks.sparse_product import SparseProduct
from taxonomy.measure.tasks.task import Peer, Shape, Task

__all__ = ["TASKS", "Circuit", "Peer", "Shape", "Task", "task_of"]

TASKS: tuple[type[Task], ...] = (Attention, Convolution, Product, Solve, SparseProduct)


def task_of(shape: Shape, seed: int) -> Task:
    """The task that a setting asks for: of those whose keys it has, the one with the most.

    Raises
    ------
    LookupError
        If no task answers to these keys.

    Examples
    --------
    >>> task_of({"m": 2, "n": 3, "k": 4}, seed=0).name
    'product'
    >>> task_of({"m": 2, "n": 3, "k": 4, "density": 0.5}, seed=0).name
    'sparse product'
    """
    fitting = [task for task in TASKS if task.keys <= set(shape)]
    if not fitting:
        raise LookupError(f"no task has the keys {', '.join(shape)}; there are {', '.join(t.name for t in TASKS)}")
    return max(fitting, key=lambda task: len(task.keys)).of(shape, seed)
