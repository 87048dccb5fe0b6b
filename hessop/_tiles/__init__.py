"""The tiles engine: evaluate equations without storing their large intermediates."""

from hessop._tiles.evaluate import schedule_of as schedule_of, stored_bytes as stored_bytes
from hessop._tiles.options import Options as Options
from hessop._tiles.primitive import Tiled as Tiled, trace_tiled as trace_tiled
from hessop._tiles.schedule import Choice as Choice
