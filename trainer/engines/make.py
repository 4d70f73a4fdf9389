"""Makes the engine that ``engine.name`` names. Importing this imports torch."""

from trainer.config import EngineConfig
from trainer.device_cache import DeviceCache
from trainer.engine import Engine
from trainer.engines.trial_record import Score


def make_engine(settings: EngineConfig, device_cache: DeviceCache, score: Score, slots: int | None = None) -> Engine:
    """The engine of that name on a device.

    Args:
        settings: checked by the config.
        device_cache: base models and data of the device.
        score: the sweep's objective, higher is better.
        slots: most trials at a time; None leaves it to the engine.
    """
    if settings.name == "hf":
        from trainer.engines.hf_engine import HfEngine  # Hugging Face Trainer takes seconds to import

        return HfEngine(device_cache, score, settings.activation_checkpointing)
    from trainer.engines.packed_engine import PackedEngine

    return PackedEngine(device_cache, score, settings, slots)
