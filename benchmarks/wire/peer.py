"""The shape of the public reward servers: Flask, pickled lists of JPEG files, one WSGI route.

Written from their protocol, for comparison only: unpickling what a network sends runs what the
sender likes. Run by gunicorn with two sync workers, on loopback.
"""

from __future__ import annotations

import io
import pickle

import flask
import numpy as np
import PIL.Image

app = flask.Flask(__name__)


@app.post("/")
def score() -> bytes:
    """Decode the pictures, read one pixel of each, answer a pickle."""
    request = pickle.loads(flask.request.get_data())
    pictures = [np.asarray(PIL.Image.open(io.BytesIO(data))) for data in request["images"]]
    scores = [float(p[p.shape[0] // 2, p.shape[1] // 2, 0]) / 255 for p in pictures]
    return pickle.dumps({"scores": scores})
