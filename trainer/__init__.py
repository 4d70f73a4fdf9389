"""The work of a trial: models, data, LoRA, engines, evaluation. Imports no Ray, Hydra, Optuna or W&B."""
