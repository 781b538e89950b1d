"""A page in the browser that shows what goes on in queues: the command ``persipubsub dashboard``.

One thread for each queue reads its status (``watching.py``) through a source (``sources.py``). What it has found is
kept in memory (``history.py``), judged (``findings.py``) and written as JSON (``summary.py``). ``app.py`` answers
requests, behind the checks of ``guard.py``; ``serving.py`` runs the server.
"""
