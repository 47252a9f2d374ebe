from .api import Api as Api
from .deployment import Gateway as Gateway
from .results import SegmentationResult as SegmentationResult
from .segmenter import Segmenter as Segmenter
from .tokens import Role as Role
from .tokens import TokenFile as TokenFile
