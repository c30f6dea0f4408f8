"""Run folders, and everything that is done with them.

The files beside this one make runs; :class:`mobileone_q.runs.run.Run` is a run as Python sees it. Each folder
is a room of its own, whose ``__init__.py`` says what belongs in it.
"""
