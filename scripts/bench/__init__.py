"""`make bench`: what an event costs and how long it takes, beside loops written by hand, in one run.

`__main__` takes what is asked for and goes through the sections that `sections.py` names, a module or class each.
"""
