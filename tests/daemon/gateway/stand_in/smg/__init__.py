"""In SMG's place, for tests of what is around it: found by PYTHONPATH under its name."""
