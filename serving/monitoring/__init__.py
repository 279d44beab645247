"""A Grafana dashboard, and Prometheus' rules and alerts, made of the tables of metrics.

`panels.py` and `alerts.py` say what is shown and what wakes somebody; `dashboard.py`, `rules.py`
and `page.py` write it as Grafana, Prometheus and an operator read it. To write all three below a
checkout, run `python -m iblip.serving.monitoring`.
"""
