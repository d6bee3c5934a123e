"""What Sphinx does for this book: an extension in each module or package, and `common` for all.

`_config.yml` names them. Nothing here computes: what pages show comes from `pfcore`, from stored
records and claims, and from the notebooks.
"""
