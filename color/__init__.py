"""Colour on tensors: Lab, lightness, the sRGB gamut, chroma transfer and colour names."""
