"""What is wrong with a data set, all of it in one look, before anything is trained on it.

`examination` puts the parts together; the kinds of findings and what each means for training: `findings`.
"""
