"""The tiles engine: evaluate equations without storing their large intermediates."""

from hessop.tiles.evaluate import Options as Options, evaluate_tiled as evaluate_tiled
