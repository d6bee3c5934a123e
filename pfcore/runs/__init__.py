"""Running experiments: problems, training, checkpoints, and stored records.

One module per job, independent of any experiment: `problems` builds data, network and loss,
`training` runs gradient descent and measures, `counting` counts what a program computes,
`execution` runs a plan piece by piece, `overrides` reads settings from text, `folder` manages the
files of an unfinished run, `store` finds stored records, `memory` predicts device memory, and
`profiles` selects the size of experiments.
"""
