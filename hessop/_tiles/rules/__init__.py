"""Rules of the tiles engine: how to compute a part of the output of each primitive."""
