"""Sphinx extensions of this book, one in each module or package; `common` is shared by all.

`_config.yml` lists them. They do not compute results: these come from `pfcore`, from stored records
and claims, and from the notebooks.
"""
