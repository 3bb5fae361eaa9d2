"""Natural Questions (Kwiatkowski et al. 2019) as DSI and its successors made corpora of it.

`records` keeps of a record of TFDS `natural_questions` what a corpus needs, `specs` says which
corpora there are, `build` makes them, `load` finds the data and keeps what was built.
"""
