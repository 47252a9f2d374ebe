from .models import ServedModels as ServedModels
from .models import serve_models as serve_models
