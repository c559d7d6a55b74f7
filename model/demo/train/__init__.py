"""Trains the bundled demo pair: text, target, drafter, export and measurement.

Run as `python -m sapwood.model.demo.train` (or `make train`). It needs the packages of its own
requirements.txt; torch is imported nowhere else in the project. Same seed and same machine: same
pair.
"""
