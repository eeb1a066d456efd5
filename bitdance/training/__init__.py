"""Training: tokenizer and model, on images or on packed codes, resumable to the bit.

``config`` what a run is, ``images`` and ``batches`` what it sees, ``tokenizer`` and ``model`` what
it minimises, ``trainer`` the loop, ``checkpoint`` and ``log`` what it leaves behind.
"""
