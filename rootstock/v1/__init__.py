"""Stubs generated from proto/rootstock/v1 by `make proto`. Never edited; a test checks for drift."""
