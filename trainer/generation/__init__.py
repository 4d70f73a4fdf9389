"""What a model writes after prompts, for all slots of a pack in one batch."""
