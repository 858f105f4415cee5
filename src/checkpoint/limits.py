"""Limits of what a weight file may hold. A damaged or hostile file is refused before it takes memory or minutes.

The largest real file that the formats know is far below: PanGu-α 200B has about 1,050 parameters, and 4,200 with the
optimizer's states and float32 copies. Experts do not add to it, because one parameter holds all experts of a layer.
Hub checkpoints of other models with hundreds of experts have up to 100,000 tensors, but some hundreds in each file.
"""

MOST_TENSORS = 50_000  # in a file
MOST_AXES = 32  # of a tensor; numpy's own limit was the same for long
LONGEST_NAME = 1000  # characters of a tensor's name; the longest real ones have about a hundred
