"""Lane: one queue as a one-way road for messages. Compiled where a compiler was found; processes are not its affair.

outlet  the driver's end: lays messages into its arena, offers them, gets them back
inlet   the device's end: takes messages as bytes or in place, gives them back
"""
