"""What everything else rests on: errors, pytrees as flat vectors, bytes, progress, settings of JAX."""
