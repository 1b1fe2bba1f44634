"""Find everything that is wrong with a data set before training on it.

Start at `examine`; `findings` says what each kind of finding means for training.
"""
