"""How a family of surfaces is registered."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..canvas import Canvas, mix
from .fields import angle, choose, radius, smooth


@dataclass(frozen=True)
class Surface:
    """A family of normal pictures; `draw` gives the picture and where a defect may lie."""

    name: str
    nouns: tuple[str, ...]
    domain: str
    draw: Callable[[Canvas], tuple[Tensor, Tensor]]


class Registry(dict[str, Surface]):
    """The families of a module, in order; calling it gives the decorator that adds one."""

    def __call__(
        self, name: str, *nouns: str, domain: str = "industrial", edge: float = 0.0, hole: float = 0.0
    ) -> Callable:
        """Register a drawing function; a texture may return the picture alone. `edge` and `hole` are the chances that
        the texture is that of a part whose border crosses the picture, or that has a round hole."""

        def register(function: Callable[[Canvas], Tensor | tuple[Tensor, Tensor]]) -> Callable:
            def draw(c: Canvas) -> tuple[Tensor, Tensor]:
                drawn = function(c)
                image, foreground = drawn if isinstance(drawn, tuple) else (drawn, torch.ones_like(c.x))
                if edge or hole:
                    image, foreground = cut(c, image, c.chance(edge), c.chance(hole))
                image = image.clamp(0, 1).expand(c.n, 3, c.size, c.size).contiguous()
                return image, foreground.clamp(0, 1).contiguous()

            self[name] = Surface(name, nouns, domain, draw)
            return function

        return register


def cut(c: Canvas, image: Tensor, edge: Tensor, hole: Tensor) -> tuple[Tensor, Tensor]:
    """The picture as that of a part that ends at a straight or slightly curved border, or that has a drilled hole."""
    u, v = c.coordinates(angle(c), 1.0)
    border = v + c.uniform(-0.4, 0.4) * u.square() * c.chance(0.4) - c.uniform(0.15, 0.45)
    bore = c.uniform(0.06, 0.2) - radius(u - c.uniform(-0.4, 0.4), v - c.uniform(-0.4, 0.4))
    d = torch.maximum(torch.where(edge > 0, border, -1.0), torch.where(hole > 0, bore, -1.0))
    level = choose(c, c.uniform(0.01, 0.15), c.uniform(0.01, 0.5), c.uniform(0.7, 0.98))
    beyond = (level + c.normal(3) * 0.02) * (1 + 0.15 * smooth(c)) + c.uniform(0, 0.02) * c.white()
    rim = 1 + c.uniform(-0.5, 0.6) * c.smoothstep((d + 0.012).abs() - c.uniform(0.004, 0.02), 3)
    inside = c.smoothstep(d, c.log_uniform(1.5, 5))
    return mix(beyond, image * rim, inside), inside
