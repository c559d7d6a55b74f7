"""Ours beside every peer a user might pick instead: the same weights and prompts, in one run."""
