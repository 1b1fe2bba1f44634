"""Everything that is wrong with a data set, found before anything is trained on it.

Start at `examine`; what each kind of finding means for training stands in `findings`.
"""
