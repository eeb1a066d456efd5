"""Packed binary latents: one bit a channel instead of one float.

A bit is 1 exactly where the value is greater than 0; +0, -0 and NaN give 0. Channel c is bit c % 8
of byte c // 8 (little-endian within the byte, as ``numpy.packbits(..., bitorder="little")``), so a
byte is the index of an 8-bit group of look-up-free quantisation. Unpacked values are +1 and -1.
"""
