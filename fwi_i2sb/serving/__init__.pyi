"Trained runs as a service: predictions by HTTP, jobs, keys, limits, metrics."

from .app import create_app as create_app
from .command import ServeOptions as ServeOptions, serve_command as serve_command
from .models import Models as Models
from .settings import Settings as Settings, read_settings as read_settings
