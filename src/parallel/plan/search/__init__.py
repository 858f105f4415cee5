"""`train.py --plan --search`: the fastest plans of a model on a cluster, by a model of the step time.

`machines` has data-sheet numbers, `step_time` turns a plan into seconds, `published` lists measured runs with their
sources, and `fit` compares the two. `shortlist.search` tries the plans, and `report.describe_search` prints all of it.
Nothing here was run on a device. It may import numpy, src.parallel.plan and the rooms below it.
"""
