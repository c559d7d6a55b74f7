"""Stubs generated from proto/sapwood/v1 by `make proto`. Never edited; a test checks for drift."""
