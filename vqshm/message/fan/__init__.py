"""Fan: several lanes as one: many to one, one to many.

base      taking a place of a channel, waiting
fan_in    one process receives from many           in_lane   a lane of it
fan_out   one process sends to many                out_lane  a lane of it
turns     whose turn it is, and the send into its lane
"""

from vqshm.message.fan.fan_in import Fanin
from vqshm.message.fan.fan_out import Fanout

__all__ = ["Fanin", "Fanout"]
