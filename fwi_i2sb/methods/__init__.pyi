"What a network learns: losses, the methods, their options."

from .base import LossModule as LossModule, Method as Method
from .bridge import BridgeMethod as BridgeMethod
from .ddpm import DDPMMethod as DDPMMethod
from .gan import GANMethod as GANMethod
from .options import ModelOptions as ModelOptions
from .registry import METHODS as METHODS, build_method as build_method, model_sizes as model_sizes
from .registry import register_method as register_method
