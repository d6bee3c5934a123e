"""How an experiment is carried out: problems, training, checkpoints, and where records are kept.

A module per job, none of which knows an experiment: `problems` builds data, network and loss,
`training` descends and measures, `execution` runs a plan piece by piece, `overrides` reads settings
from text, `folder` keeps a run that is under way, `store` finds stored records, and `profiles` says
which size of experiment is asked for.
"""
