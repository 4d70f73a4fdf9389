"""Orchestration: from a composed config to Ray Tune trials, their tracking, and the sweep folder."""
