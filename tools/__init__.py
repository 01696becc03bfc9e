"""For maintainers: python -m tools.NAME.

export              a run's best model without what only its training needs
results_tables      the tables of README, docs and recipes, from the recorded runs
records             the recorded runs: read, grouped, averaged
published           the tables' rows, and the numbers of the paper and of others
drawn_digits        twenty digits as people photograph them, and what a model reads in them
readme_figures      the pictures of README and docs
"""
