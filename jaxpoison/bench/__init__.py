"""Kernel throughput on this machine, beside what the machine can do.

``jaxpoison bench`` is its command line. ``cases`` has one entry for each public kernel, ``measure``
times it, ``ceilings`` measures the machine in the same run, ``compare`` holds two runs together.
"""
