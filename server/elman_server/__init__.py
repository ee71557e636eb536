"""The server. A request passes through these rooms:

    rpc (proto <-> domain, validation, errors) -> scheduling (who runs next) -> engine (state slots, onnxruntime)
         |                                          ^                            -> decoding (logits -> token)
         +-> sessions (state between calls, the store) -+

`application` puts them together. No torch here, and no cell known by name: a model is what its manifest says.
"""

import elman_protos.telemetry  # noqa: F401
