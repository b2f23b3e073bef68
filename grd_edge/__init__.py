"""grd-edge: industrial visual anomaly detection, from good images to decisions at line speed.

Import what you need from its module; this package imports nothing by itself, so that the runtime on the line
(`grd_edge.runtime`) stays free of the training stack.
"""
