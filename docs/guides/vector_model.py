"""A network of your own for arrays: copy this file, change it, and train with --import FILE.py --model mine."""
from torch import Tensor, nn

from fwi_i2sb.models.registry import register
from fwi_i2sb.models.vector_net import VectorNet


class Mine(VectorNet):
    "Three convolutions and a mean over all places; channels first, any number of axes."
    axes = (1, 2, 3)  # numbers of axes behind the channels that it can read; `maps = True` if it can give maps, too

    def __init__(self, inputs: tuple[int, ...], outputs: tuple[int, ...]):
        super().__init__(inputs, outputs)  # keeps both shapes, and refuses those that cannot be
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(self.inputs) - 2]
        widths = (self.inputs[0], 16, 32, 64)
        self.layers = nn.Sequential(*[layer for a, b in zip(widths, widths[1:])
            for layer in (conv(a, b, 3, stride=2, padding=1), nn.GroupNorm(8, b), nn.SiLU())])
        self.head = nn.Linear(widths[-1], self.outputs[0])

    def forward(self, x: Tensor) -> Tensor:  # (batch, channels, *size), normalised
        self.check_inputs(x)
        return self.head(self.layers(x).flatten(2).mean(2))  # (batch, numbers), normalised


@register("mine", methods=("vector",), about="three convolutions, a network of my own", reads_map=False)
def _mine(shapes, options): return Mine(shapes.reads, shapes.gives)
