"""Reference runners and engine builders, one file per backend.

On the line a target is run by the native library (`grd_edge.runtime`); what is here is what it is compared with.
"""
