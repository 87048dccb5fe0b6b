"""The tiles engine: evaluate equations without storing their large intermediates. README.md explains it."""

from hessop._tiles.options import Options as Options
from hessop._tiles.primitive import Tiled as Tiled, trace_tiled as trace_tiled
from hessop._tiles.schedule import Choice as Choice
