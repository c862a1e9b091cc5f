"""Message: the fast way between processes: senders and receivers over lanes, one to one and many to many.

channel   a region made for messages: which lanes it has, and who takes which
sender    the process that sends          receiver   the process that receives
fan       several lanes as one            payload    objects as messages
aio       all of them in an event loop
"""

from vqshm.message.channel import open_channel
from vqshm.message.fan import Fanin, Fanout
from vqshm.message.receiver import Receiver
from vqshm.message.sender import Sender

__all__ = ["Fanin", "Fanout", "Receiver", "Sender", "open_channel"]
