from .registry import CHAMPION as CHAMPION
from .registry import ModelVersion as ModelVersion
from .registry import Registry as Registry
