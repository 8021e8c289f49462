"""Colour profiles (ICC version 2) by hand: grey and RGB by a gamma, CMYK by a table."""

import itertools
import struct
from collections.abc import Sequence

import numpy as np

# Columns are the primaries in XYZ of D50.
SRGB_PRIMARIES = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
ADOBE_PRIMARIES = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
P3_PRIMARIES = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
WHITE = (0.9642, 1.0, 0.8249)


def _profile(space: bytes, pcs: bytes, tags: list[tuple[bytes, bytes]]) -> bytes:
    text = b"by hand\0"
    tags = [
        (b"desc", b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(79)),
        (b"cprt", b"text" + bytes(4) + text),
        (b"wtpt", _xyz(WHITE)),
        *tags,
    ]
    table, body, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, data in tags:
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    size, kind = start + len(body), b"prtr" if space == b"CMYK" else b"mntr"
    header = struct.pack(">I4sI4s4s4s6H", size, bytes(4), 0x02400000, kind, space, pcs, 2024, 1, 1, 0, 0, 0)
    header += b"acsp" + bytes(28) + struct.pack(">3I", 0xF6D6, 0x10000, 0xD32D)
    return header.ljust(128, b"\0") + table + body


def _xyz(values: Sequence[float]) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))


def _gamma(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))


def srgb_curve(num: int) -> bytes:
    """The curve of sRGB in a table, as makers of cameras store it."""
    x = np.linspace(0.0, 1.0, num)
    linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    return b"curv" + bytes(4) + struct.pack(">I", num) + np.rint(linear * 65535).astype(">u2").tobytes()


def grey_profile(gamma: float) -> bytes:
    return _profile(b"GRAY", b"XYZ ", [(b"kTRC", _gamma(gamma))])


def rgb_profile(primaries: Sequence[Sequence[float]], gamma: float, *, curve: bytes | None = None) -> bytes:
    columns = [(name + b"XYZ", _xyz(xyz)) for name, xyz in zip((b"r", b"g", b"b"), primaries, strict=True)]
    curves = [(name + b"TRC", curve or _gamma(gamma)) for name in (b"r", b"g", b"b")]
    return _profile(b"RGB ", b"XYZ ", columns + curves)


def cmyk_profile() -> bytes:
    """Inks that take away less than all of their light, and a black of L* 10."""
    table = []
    for c, m, y, k in itertools.product((0.0, 1.0), repeat=4):
        light = 100.0 - 28.0 * c - 34.0 * m - 6.0 * y
        lab = (
            (light - 10.0) * (1.0 - k) + 10.0,
            (-35.0 * c + 70.0 * m) * (1.0 - k),
            (-45.0 * c + 85.0 * y) * (1.0 - k),
        )
        table += [round(lab[0] * 2.55), round(lab[1]) + 128, round(lab[2]) + 128]
    ramp = bytes(range(256))
    identity = struct.pack(">9i", *(65536 * (n in (0, 4, 8)) for n in range(9)))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + ramp * 4 + bytes(table) + ramp * 3
    return _profile(b"CMYK", b"Lab ", [(b"A2B0", lut)])
