"""Traces of prompts, and policies of what a cache keeps of them in so many bytes."""
