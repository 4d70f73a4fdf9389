"""Which engine a config's ``engine.name`` means. Importing this imports torch."""

from trainer.engine import Engine
from trainer.hf import HfEngine, Score
from trainer.materials import Materials

ENGINES = {"hf": HfEngine}


def make_engine(name: str, materials: Materials, score: Score) -> Engine:
    """The engine of that name on a device.

    Args:
        name: checked by the config; a key of ``ENGINES``.
        materials: base models and data of the device.
        score: the sweep's objective, higher is better.
    """
    return ENGINES[name](materials, score)
