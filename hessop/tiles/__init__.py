"""The tiles engine: evaluate equations without storing their large intermediates."""

from hessop.tiles.evaluate import schedule_of as schedule_of, stored_bytes as stored_bytes
from hessop.tiles.options import Options as Options
from hessop.tiles.primitive import Tiled as Tiled, trace_tiled as trace_tiled
from hessop.tiles.schedule import Choice as Choice
