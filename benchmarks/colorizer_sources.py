"""The runs of a comparison as a user names them, each with drawing settings of its own: RUN@steps=1,chroma=0.6."""

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from runs.drawing import check_guidance, check_steps
from runs.vividness import AUTO, chroma_scale

KEYS = ("steps", "guidance", "chroma")


@dataclass(frozen=True)
class Settings:
    """What a run draws with; None keeps what it was built with."""

    steps: int | None = None
    guidance: float | None = None
    chroma: float | str | None = None  # a scale, or auto

    def __str__(self) -> str:
        given = [
            f"{k}={v if isinstance(v, str) else f'{v:g}'}" for k, v in asdict(self).items() if v is not None
        ]
        return ",".join(given) or "no settings"

    def for_drawing(self, ranker: nn.Module | None) -> dict[str, Any]:
        """Arguments of `DrawSettings`; the ranker serves chroma=auto alone."""
        if self.chroma == AUTO:
            chroma: dict[str, Any] = {"ranker": ranker}
        else:
            chroma = {"chroma_scale": self.chroma}
        return {"num_steps": self.steps, "guidance_scale": self.guidance, **chroma}


@dataclass(frozen=True)
class Source:
    """A run folder, checkpoint file or shipped name, its settings, and both as the user wrote them."""

    text: str
    run: str
    settings: Settings = Settings()


def parse_source(text: str) -> Source:
    """A run of methods=, with or without settings; an @ before the last slash is part of the path.

    Raises:
        ValueError: no run, or settings that make no sense.
    """
    run, at, listed = text.rpartition("@")
    if not at or "/" in listed:
        return Source(text, text)
    values: dict[str, Any] = {}
    for word in (word.strip() for word in listed.split(",")):
        key, equals, value = (part.strip() for part in word.partition("="))
        if key not in KEYS or not equals:
            raise ValueError(
                f"methods= has '{text}', where '{word}' is not steps=N, guidance=SCALE, chroma=SCALE or chroma=auto; write "
                "RUN@steps=1,chroma=0.6"
            )
        if key in values:
            raise ValueError(f"methods= has '{text}', which gives {key} twice; give it once")
        try:
            values[key] = _value(key, value)
        except ValueError as error:
            raise ValueError(f"methods= has '{text}', where {error}") from None
    return Source(text, run.strip(), Settings(**values))


def _value(key: str, text: str) -> float | str:
    if key == "chroma":
        scale = chroma_scale(text or "nothing", None)
        return AUTO if scale is None else scale
    if key == "steps":
        if not text.isdecimal():
            raise ValueError(f"steps={text} is not a whole number of at least 1")
        check_steps(int(text))
        return int(text)
    try:
        guidance = float(text)
    except ValueError:
        raise ValueError(f"guidance={text} is not a number from 0; 1 is off") from None
    check_guidance(guidance)
    return guidance
