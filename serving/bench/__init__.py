"""How fast a server answers, and how fast it should be set up to be.

Start with `running.py`: it sends the requests of `requests.py` as `loads.py` has them arrive.
`figures.py` turns what became of them into percentiles and goodput, `searching.py` finds the
highest rate that meets a service level objective, `text.py` and `plot.py` show it. `inputs.py`
writes the same requests for other load generators. `settings.py` and `tuning.py` try settings of a
build.

Nothing here knows how a command is called; what prints is in `serving.cli`.
"""
