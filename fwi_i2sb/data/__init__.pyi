"Records and maps: velocity scales, OpenFWI's files, generated data, the store, starting models."

from .check import check_record as check_record, inspect_folder as inspect_folder
from .geology import sample_velocity as sample_velocity
from .multi_family import MultiFamilyStore as MultiFamilyStore
from .openfwi import FAMILIES as FAMILIES, discover as discover, get_family as get_family
from .scale import OPENFWI_SCALE as OPENFWI_SCALE, VelocityScale as VelocityScale
from .spec import DataSpec as DataSpec
from .starting_models import Start as Start
from .store import StoreDataset as StoreDataset, convert as convert
