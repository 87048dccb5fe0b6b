"""Rules of the tiles engine: how to make a part of what each primitive gives."""
