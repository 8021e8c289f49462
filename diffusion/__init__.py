"""The latent diffusion core: paths, objectives, samplers, guidance, latent codecs. Tensors only."""
