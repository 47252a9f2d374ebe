from .cache.cases import CaseCache as CaseCache
from .cache.prepared import CachedCase as CachedCase
from .fingerprint import Fingerprint as Fingerprint
from .fingerprint import fingerprint as fingerprint
from .patches.sampler import PatchSampler as PatchSampler
from .project import Project as Project
from .project import dataset_digest as dataset_digest
from .project import open_project as open_project
