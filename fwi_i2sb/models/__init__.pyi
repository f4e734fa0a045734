"Networks, and how one of your own is registered."

from .encoders import ENCODERS as ENCODERS, build_encoder as build_encoder
from .inversionnet import InversionNet as InversionNet
from .registry import MODELS as MODELS, build_net as build_net, register as register
from .unet import ConditionalUNet as ConditionalUNet, build_network as build_network
from .vector_net import VectorNet as VectorNet
