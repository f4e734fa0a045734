"What every chapter uses: errors, files, commands, registries, progress, devices."

from .commands import need as need, option_group as option_group, run_command as run_command
from .devices import resolve_device as resolve_device
from .errors import InputError as InputError
from .files import atomic as atomic, open_npy as open_npy, write_json as write_json
from .locks import locked as locked
from .progress import progress_bar as progress_bar
